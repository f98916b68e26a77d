"""Stand-in for TensorRT, for tests of what happens around a compiler. It compiles nothing.

A test puts this folder on PYTHONPATH and says in the variable STAND_IN, as JSON, how the compiler
should behave: `log` (a file that gets a line per compile), `fits_mb` (more workspace is out of
memory), `block_bytes` (weights go into one block, and a larger one is refused whatever the
workspace, as on an 8 GB Nano), `warns` (engine -> warnings), `refuses` (engine -> message),
`mutters` (engine -> words on stderr), `dies` (engine -> signal), `waits` (engine -> a named pipe,
opened before waiting for ever), `version`. The names and the way they are called are TensorRT's;
only those exist that 10.3, 10.16 and 11.4 have in common, so a call of any other fails.
"""

import enum
import hashlib
import json
import os
import signal
import sys
from pathlib import Path

BEHAVIOUR = json.loads(os.environ.get("STAND_IN", "{}"))
__version__ = BEHAVIOUR.get("version", "10.3.0")


class ILogger:
    class Severity(enum.Enum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2


class IProgressMonitor:
    pass


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 1


class MemoryPoolType(enum.Enum):
    WORKSPACE = 0


class ProfilingVerbosity(enum.Enum):
    DETAILED = 2


class BuilderFlag(enum.Enum):
    TF32 = 0


class Network:
    num_layers = 0
    onnx = None


class OnnxParser:
    num_errors = 0

    def __init__(self, network, logger):
        self.network = network

    def parse_from_file(self, path):
        self.network.onnx = Path(path)
        return True


class TimingCache:
    def __init__(self, data):
        self.data = data

    def serialize(self):
        return self.data + b"time "


class BuilderConfig:
    def __init__(self):
        self.seen = {"tf32": True}

    def set_memory_pool_limit(self, pool, num_bytes):
        self.seen[pool.name.lower()] = num_bytes

    def clear_flag(self, flag):
        self.seen[flag.name.lower()] = False

    def create_timing_cache(self, data):
        return TimingCache(data)

    def set_timing_cache(self, cache, ignore_mismatch):
        self.cache = cache
        self.seen["timing_cache"] = len(cache.data)
        return not cache.data.startswith(b"alien")

    def get_timing_cache(self):
        return self.cache


def plan_of(onnx):
    """What is compiled of a file."""
    return b"stand-in plan " + hashlib.sha256(onnx.read_bytes()).digest()


class HostMemory(bytes):
    @property
    def nbytes(self):
        return len(self)


class Builder:
    def __init__(self, logger):
        self.logger = logger

    def create_network(self, flags):
        assert flags == 1 << int(NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        return Network()

    def create_builder_config(self):
        return BuilderConfig()

    def build_serialized_network(self, network, config):
        name = network.onnx.stem
        _note(name, config)
        config.progress_monitor.phase_start("Building engine", None, 2)
        config.progress_monitor.step_complete("Building engine", 0)
        if name in BEHAVIOUR.get("waits", {}):
            _wait(BEHAVIOUR["waits"][name])
        if name in BEHAVIOUR.get("mutters", {}):
            print(BEHAVIOUR["mutters"][name], file=sys.stderr, flush=True)
        for words in BEHAVIOUR.get("warns", {}).get(name, []):
            self.logger.log(ILogger.Severity.WARNING, words)
        if name in BEHAVIOUR.get("dies", {}):
            os.kill(os.getpid(), BEHAVIOUR["dies"][name])
        if name in BEHAVIOUR.get("refuses", {}):
            return self._refuse(BEHAVIOUR["refuses"][name])
        weights = sum(f.stat().st_size for f in network.onnx.parent.glob(f"{name}.*"))
        if weights > BEHAVIOUR.get("block_bytes", 1 << 60):
            return self._no_room_for(weights)
        if config.seen["workspace"] > BEHAVIOUR.get("fits_mb", 1 << 20) << 20:
            return self._no_room_for(config.seen["workspace"])
        config.progress_monitor.phase_finish("Building engine")
        return HostMemory(plan_of(network.onnx))

    def _no_room_for(self, num_bytes):
        self.logger.log(ILogger.Severity.ERROR, "Error Code 1: Cuda Runtime (out of memory)")
        self.logger.log(
            ILogger.Severity.WARNING,
            f"Requested amount of GPU memory ({num_bytes} bytes) could not be allocated. There may "
            "not be enough free memory for allocation to succeed.",
        )
        self._refuse(
            "IBuilder::buildSerializedNetwork: Error Code 10: Internal Error (Could not find "
            "any implementation for node model.layers.0.mlp.up_proj/MatMul.)"
        )

    def _refuse(self, message):
        self.logger.log(ILogger.Severity.WARNING, "a warning is no reason")
        self.logger.log(ILogger.Severity.ERROR, message)


def _note(name, config):
    line = {"engine": name, "pid": os.getpid(), **config.seen}
    line |= {"max_aux_streams": config.max_aux_streams}
    line |= {"profiling_verbosity": config.profiling_verbosity.name}
    if "log" in BEHAVIOUR:
        with open(BEHAVIOUR["log"], "a") as log:
            log.write(json.dumps(line) + "\n")


def _wait(pipe):
    """Whoever reads the pipe knows that we are here; it ends with this process."""
    with open(pipe, "w") as writer:
        writer.write("waiting\n")
        writer.flush()
        while True:
            signal.pause()
