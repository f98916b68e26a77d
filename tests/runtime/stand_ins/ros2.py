"""A stand-in for the part of rclpy that the runtime uses: one process, one list of queues.

It is not ROS: no discovery, no wire, no quality of service but the depth of a queue. The same tests
run against the real one with `make test-ros2`.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from types import ModuleType, SimpleNamespace
from typing import Any


class _Message:
    """Fields are made as they are needed, as far as a message has them."""

    fields: dict[str, Any] = {}

    def __init__(self, **given: Any) -> None:
        for name, make in self.fields.items():
            setattr(self, name, given.pop(name) if name in given else make())
        assert not given, f"{type(self).__name__} has no {sorted(given)}"


def _time() -> SimpleNamespace:
    return SimpleNamespace(sec=0, nanosec=0)


def _header() -> SimpleNamespace:
    return SimpleNamespace(stamp=_time(), frame_id="")


class Image(_Message):
    fields = {"header": _header, "height": int, "width": int, "encoding": str, "step": int,
              "is_bigendian": int, "data": bytes}  # fmt: skip


class JointState(_Message):
    fields = {"header": _header, "name": list, "position": list, "velocity": list, "effort": list}


class String(_Message):
    fields = {"data": str}


class JointTrajectory(_Message):
    fields = {"header": _header, "joint_names": list, "points": list}


class JointTrajectoryPoint(_Message):
    fields = {"positions": list, "velocities": list, "time_from_start": _time}


class Bus:
    """Queues and publishers by topic."""

    def __init__(self) -> None:
        self.queues: dict[str, list[deque[Any]]] = defaultdict(list)
        self.num_publishers: dict[str, int] = defaultdict(int)
        self.num_contexts = 0


class _Clock:
    def now(self) -> SimpleNamespace:
        ns = time.time_ns()
        stamp = SimpleNamespace(sec=ns // 10**9, nanosec=ns % 10**9)
        return SimpleNamespace(nanoseconds=ns, to_msg=lambda: stamp)


class _Publisher:
    def __init__(self, bus: Bus, topic: str) -> None:
        self._bus, self._topic = bus, topic
        bus.num_publishers[topic] += 1

    def publish(self, message: Any) -> None:
        for queue in self._bus.queues[self._topic]:
            queue.append(message)

    def get_subscription_count(self) -> int:
        return len(self._bus.queues[self._topic])


class _Node:
    def __init__(self, bus: Bus) -> None:
        self._bus, self.subscriptions = bus, list[tuple[str, deque[Any], Any]]()

    def create_subscription(self, kind: Any, topic: str, callback: Any, qos: Any) -> None:
        queue: deque[Any] = deque(maxlen=getattr(qos, "depth", qos))
        self._bus.queues[topic].append(queue)
        self.subscriptions.append((topic, queue, callback))

    def create_publisher(self, kind: Any, topic: str, qos: Any) -> _Publisher:
        return _Publisher(self._bus, topic)

    def count_publishers(self, topic: str) -> int:
        return self._bus.num_publishers[topic]

    def get_clock(self) -> _Clock:
        return _Clock()

    def destroy_node(self) -> None:
        for topic, queue, _ in self.subscriptions:
            self._bus.queues[topic] = [q for q in self._bus.queues[topic] if q is not queue]
        self.subscriptions = []


class _Executor:
    def __init__(self, context: Any) -> None:
        self._nodes: list[_Node] = []

    def add_node(self, node: _Node) -> None:
        self._nodes.append(node)

    def spin_once(self, timeout_sec: float) -> None:
        until = time.monotonic() + timeout_sec
        while True:
            for node in self._nodes:
                for _, queue, callback in node.subscriptions:
                    if queue:
                        callback(queue.popleft())
                        return
            if time.monotonic() >= until:
                return
            time.sleep(0.001)

    def shutdown(self) -> None:
        self._nodes = []


def modules() -> dict[str, ModuleType]:
    """By the names under which they are imported."""
    bus = Bus()

    def init(context: Any) -> None:
        bus.num_contexts += 1

    def shutdown(context: Any) -> None:
        bus.num_contexts -= 1

    def module(name: str, **contents: Any) -> ModuleType:
        made = ModuleType(name)
        made.__dict__.update(contents)
        return made

    profile = lambda depth, reliability=None: SimpleNamespace(depth=depth)  # noqa: E731
    reliability = SimpleNamespace(BEST_EFFORT="best effort", RELIABLE="reliable")
    found = [
        module("rclpy", Context=object, init=init, shutdown=shutdown, bus=bus,
               create_node=lambda name, context: _Node(bus)),
        module("rclpy.executors", SingleThreadedExecutor=_Executor),
        module("rclpy.qos", QoSProfile=profile, ReliabilityPolicy=reliability),
        module("sensor_msgs"),
        module("sensor_msgs.msg", Image=Image, JointState=JointState),
        module("std_msgs"),
        module("std_msgs.msg", String=String),
        module("trajectory_msgs"),
        module("trajectory_msgs.msg", JointTrajectory=JointTrajectory,
               JointTrajectoryPoint=JointTrajectoryPoint),
    ]  # fmt: skip
    return {made.__name__: made for made in found}
