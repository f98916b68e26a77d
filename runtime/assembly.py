"""A graph made ready to run: every stage bound to its buffers, once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .engine import Engine, Launch, Memory
from .functions import FUNCTIONS, Resources
from .graph import Graph, Stage
from .interpreter import HostCall, Interpreter


def assemble(
    graph: Graph,
    engines: Mapping[str, Engine],
    memory: Memory,
    resources: Resources,
    launcher: Callable[..., Launch],
) -> Interpreter:
    """Every stage of `graph` bound to its buffers."""
    runs, host_calls = {}, {}
    for stage in graph.stages:
        if stage.engine is not None:
            runs[stage.name] = engines[stage.engine].bind(stage.inputs, stage.outputs, memory)
        else:
            host_calls[stage.name] = _host_call(stage, graph.inputs, memory, resources)
    return Interpreter(graph, host_calls, launcher(graph, runs, memory))


def _host_call(
    stage: Stage, graph_inputs: tuple[str, ...], memory: Memory, resources: Resources
) -> HostCall:
    function = FUNCTIONS[stage.function or ""](stage.params, resources)
    from_values = [(port, s) for port, s in stage.inputs.items() if s in graph_inputs]
    downloads = [(port, s) for port, s in stage.inputs.items() if s not in graph_inputs]
    from_memory = {port: memory.host(s) for port, s in downloads}
    outputs = {port: memory.host(name) for port, name in stage.outputs.items()}

    def call(values: Mapping[str, Any]) -> None:
        for _, name in downloads:
            memory.download(name)
        function({**from_memory, **{port: values[s] for port, s in from_values}}, outputs)
        for name in stage.outputs.values():
            memory.upload(name)

    return call
