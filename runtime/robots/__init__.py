"""What is controlled: the protocol of a robot, and a simulated one."""
