"""SG-VLA: colour and depth of two cameras, a flow-matching expert, and five auxiliary heads."""
