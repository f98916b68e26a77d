"""The doctor finds what is wrong with a board, and says what to do about each of it."""

import argparse
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from runtime.board.doctor import (
    Probe,
    add_arguments,
    doctor,
    exit_code,
    free_bytes,
    installed_version,
    main_doctor,
    realtime_priority,
)
from runtime.board.imports import CudaAnswer
from runtime.board.machine import read_machine
from runtime.board.supported import RELEASES, releases_for
from tests.runtime.boards.tree import ANSWER, BOARDS, pc, plant

NO_FILE = "cannot open shared object file: No such file or directory"
NANO, THOR = "orin-nano-jetpack-7.2", "agx-thor-jetpack-7.2"

# What is not well with each board as it was written down, and how bad it is.
COMPLAINTS = {
    "agx-orin-jetpack-6.2": {"power mode", "clocks", "throttling"},
    "agx-orin-jetpack-7.2": set(),
    "agx-thor-jetpack-7.2": {"power mode", "clocks", "camera"},
    "orin-nano-jetpack-6.2": {"power mode", "clocks", "hidraw"},
    "orin-nano-jetpack-7.2": set(),
    "orin-nx-jetpack-6.2": {"GPU load"},
    "orin-nx-jetpack-7.2": {"power mode", "clocks", "camera"},
}


@pytest.mark.parametrize("name", BOARDS)
def test_a_supported_board_has_warnings_only_and_each_has_a_remedy(name, tmp_path):
    findings = plant(name, tmp_path).findings()
    warned = {name for name, finding in findings.items() if finding.severity == "warning"}
    assert warned == COMPLAINTS[name]
    assert not [finding for finding in findings.values() if finding.severity == "error"]
    assert all(findings[name].remedy for name in warned)
    assert exit_code(list(findings.values())) == bool(warned)


def test_everything_that_matters_is_looked_at(tmp_path, demo_bundle):
    assert list(plant(NANO, tmp_path).findings(demo_bundle)) == [
        *("GPU", "JetPack", "CUDA", "TensorRT", "Python"),
        *("numpy", "tokenizers", "pillow", "msgspec"),
        *("tensorrt", "pycuda", "cuda-bindings", "CUDA driver"),
        *("power mode", "clocks", "throttling", "GPU load", "swap", "real time"),
        *("camera", "hidraw", "bundle", "recipe", "memory", "disk"),
    ]


def test_a_pc_is_asked_for_onnx_runtime_and_for_nothing_of_a_board(tmp_path):
    board = pc(tmp_path)
    findings = board.findings()
    words = ["Python", "numpy", "tokenizers", "pillow", "msgspec", "onnxruntime", "memory", "disk"]
    assert list(findings) == words
    assert {finding.severity for finding in findings.values()} == {"ok"}
    del board.wheels["onnxruntime"]
    assert "robot-onnxruntime.txt" in board.findings()["onnxruntime"].remedy


# Edits that plant one fault each into a board that is well:
# what is then found, how bad it is, a part of what is said, and a part of the remedy.
FAULTS = {
    "old L4T": (
        lambda b: b.write("etc/nv_tegra_release", "# R35 (release), REVISION: 4.1, GCID: 1"),
        ("JetPack", "error", r"JetPack 5 \(L4T 35\.4\.1\)", r"flash JetPack 6\.1 to 6\.2\.2 or 7"),
    ),
    "L4T between the rows": (
        lambda b: b.write("etc/nv_tegra_release", "# R38 (release), REVISION: 4.0, GCID: 1"),
        ("JetPack", "warning", r"JetPack 7\.1 \(L4T 38", "nobody has tried this one"),
    ),
    "L4T of the future": (
        lambda b: b.write("etc/nv_tegra_release", "# R41 (release), REVISION: 1.0, GCID: 1"),
        ("JetPack", "warning", r"JetPack \? \(L4T 41\.1\.0\)", "flash JetPack"),
    ),
    "a container without the release file": (
        lambda b: b.remove("etc/nv_tegra_release"),
        (
            "JetPack",
            "warning",
            r"^no /etc/nv_tegra_release; GPU, CUDA and TensorRT are those of JetPack 7\.2$",
            "^in a container, mount that file .*--volume /etc/nv_tegra_release:.*; .*flash",
        ),
    ),
    "a container with an empty release file": (
        lambda b: b.write("etc/nv_tegra_release", ""),
        ("JetPack", "warning", "^no release in /etc/nv_tegra_release; ", "^in a container, mount"),
    ),
    "a container with an empty release file and other software": (
        lambda b: (b.write("etc/nv_tegra_release", ""), b.wheels.update(tensorrt="10.7.0")),
        ("JetPack", "error", "^no release in /etc/nv_tegra_release$", "^in a container, mount"),
    ),
    "a container that hides the device tree": (
        lambda b: (
            b.remove("proc/device-tree"),
            b.write("sys/devices/soc0/family", "Tegra\n"),
            b.write("sys/devices/soc0/soc_id", "35\n"),
            b.write("etc/nv_tegra_release", ""),
        ),
        ("JetPack", "warning", "^no release in", "^in a container, mount that file"),
    ),
    "TensorRT that is too old for any release": (
        lambda b: (
            b.write("etc/nv_tegra_release", "# R38 (release), REVISION: 4.0, GCID: 1"),
            b.wheels.update(tensorrt="8.6.2"),
        ),
        ("TensorRT", "error", r"8\.6\.2", "the release that this JetPack has"),
    ),
    "something else on the GPU": (
        lambda b: b.commands.update(
            {"timeout 2 tegrastats --interval 500": "RAM 1/2MB CPU [0%@1] GR3D_FREQ 71%@[900]"}
        ),
        ("GPU load", "warning", "71 %", "isolate multi-user.target"),
    ),
    "a Xavier": (
        lambda b: b.write("proc/device-tree/compatible", "nvidia,p2888-0001\0nvidia,tegra194\0"),
        ("GPU", "error", "unknown: nvidia,p2888-0001, nvidia,tegra194", "an Orin or a Thor"),
    ),
    "other TensorRT": (
        lambda b: b.wheels.update(tensorrt="10.7.0"),
        ("TensorRT", "error", r"10\.7\.0", "anchorvla build BUNDLE"),
    ),
    "no TensorRT at all": (
        lambda b: (b.wheels.pop("tensorrt"), b.commands.clear()),
        ("TensorRT", "error", "none", "sudo apt install tensorrt python3-libnvinfer"),
    ),
    "no bindings in the environment": (
        lambda b: (
            b.wheels.pop("tensorrt"),
            b.fail("tensorrt", "ModuleNotFoundError: No module named 'tensorrt'"),
        ),
        ("tensorrt", "error", "not installed: ModuleNotF", "--system-site-packages"),
    ),
    "a thin board support package": (
        lambda b: b.fail("tensorrt", f"ImportError: libnvdla_compiler.so: {NO_FILE}"),
        (
            "tensorrt",
            "error",
            rf"^10\.16\.1\.11: ImportError: libnvdla_compiler\.so: {NO_FILE}$",
            "^sudo apt install nvidia-l4t-dla-compiler, on the board: in a container",
        ),
    ),
    "a placeholder that a container mounts nothing over": (
        lambda b: b.fail("tensorrt", "ImportError: libnvdla_compiler.so: file too short"),
        ("tensorrt", "error", "file too short", "^sudo apt install nvidia-l4t-dla-compiler"),
    ),
    "no cuDLA": (
        lambda b: b.fail("tensorrt", f"ImportError: libcudla.so.1: {NO_FILE}"),
        ("tensorrt", "error", "libcudla", "^sudo apt install libcudla-12-6"),
    ),
    "no library of TensorRT": (
        lambda b: b.fail("tensorrt", f"ImportError: libnvinfer.so.10: {NO_FILE}"),
        ("tensorrt", "error", "libnvinfer", "^sudo apt install tensorrt, the release"),
    ),
    "no library of CUDA": (
        lambda b: b.fail("pycuda.driver", f"ImportError: libcurand.so.10: {NO_FILE}"),
        ("pycuda", "error", "libcurand", "^sudo apt install nvidia-jetpack"),
    ),
    "a container without the driver": (
        lambda b: b.fail("pycuda.driver", f"ImportError: libcuda.so.1: {NO_FILE}"),
        ("pycuda", "error", r"libcuda\.so\.1", "nvidia-l4t-cuda; in a container: docker run --ru"),
    ),
    "pycuda built against another numpy": (
        lambda b: b.fail("pycuda.driver", "ImportError: numpy.core.multiarray failed to import"),
        ("pycuda", "error", "multiarray", "build it again: .*--force-reinstall pycuda=="),
    ),
    "an import that takes the process down": (
        lambda b: b.fail("pycuda.driver", "it ended the process (exit code -11)"),
        ("pycuda", "error", r"^2026\.1: it ended the process \(exit code -11\)$", "robot-tensor"),
    ),
    "no pycuda": (
        lambda b: (b.wheels.pop("pycuda"), b.fail("pycuda.driver", "No module named 'pycuda'")),
        (
            "pycuda",
            "error",
            "not installed",
            r"robot-tensorrt\.txt \(it compiles, which takes nvcc",
        ),
    ),
    "nothing of CUDA on PATH, as after flashing": (
        lambda b: (
            b.fail("pycuda.driver", "No module named 'pycuda'"),
            b.tools.pop("nvcc"),
            b.write("usr/local/cuda/bin/nvcc", ""),
        ),
        (
            "nvcc",
            "error",
            "^/usr/local/cuda/bin/nvcc, which is not on PATH$",
            r"^export PATH=/usr/local/cuda/bin:\$PATH",
        ),
    ),
    "no compiler of CUDA": (
        lambda b: (b.fail("pycuda.driver", "No module named 'pycuda'"), b.tools.pop("nvcc")),
        ("nvcc", "error", "^none$", "^sudo apt install nvidia-jetpack, and then: export PATH="),
    ),
    "no compiler": (
        lambda b: (b.fail("pycuda.driver", "No module named 'pycuda'"), b.tools.pop("g++")),
        ("g++", "error", "^none$", r"^sudo apt install g\+\+$"),
    ),
    "no headers of Python": (
        lambda b: b.fail("pycuda.driver", "No module named 'pycuda'"),
        ("python3-dev", "error", r"no Python\.h of Python 3\.12", r"apt install python3\.12-dev"),
    ),
    "no environments": (
        lambda b: b.fail("pycuda.driver", "No module named 'pycuda'"),
        ("python3-venv", "warning", "no environment with pip", r"apt install python3\.12-venv"),
    ),
    "no cuda-bindings": (
        lambda b: (
            b.wheels.pop("cuda-bindings"),
            b.fail("cuda.bindings.runtime", "No module named 'cuda'"),
        ),
        (
            "cuda-bindings",
            "error",
            "not installed",
            "robot-tensorrt.txt, which has the one of each",
        ),
    ),
    "half of cuda-bindings": (
        lambda b: b.fail("cuda.bindings.driver", "ImportError: no cuda.pathfinder"),
        ("cuda-bindings", "error", r"13\.2\.0: ImportError: no cuda\.pathfinder", "robot-tensorrt"),
    ),
    "bindings that are newer than the driver": (
        lambda b: setattr(
            b,
            "cuda",
            CudaAnswer(
                status=35,
                name="cudaErrorInsufficientDriver",
                num_gpus=0,
                driver=12060,
                runtime=12090,
            ),
        ),
        (
            "CUDA driver",
            "error",
            r"^error 35 \(cudaErrorInsufficientDriver\): driver 12\.6, cuda\.bindings for 12\.9$",
            r"the driver is older than the CUDA .* -r requirements/robot-tensorrt\.txt$",
        ),
    ),
    "a GPU that does not answer": (
        lambda b: setattr(b, "cuda", replace(ANSWER, status=100, name="cudaErrorNoDevice")),
        ("CUDA driver", "error", r"error 100 \(cudaErrorNoDevice\)", "usermod -aG video,render"),
    ),
    "a driver that counts no GPU": (
        lambda b: setattr(b, "cuda", replace(ANSWER, num_gpus=0)),
        ("CUDA driver", "error", r"^CUDA 13\.2, 0 GPU$", "docker run --runtime nvidia"),
    ),
    "no tokenizers": (
        lambda b: b.wheels.pop("tokenizers"),
        ("tokenizers", "error", "not installed", "-r requirements/robot.txt"),
    ),
    "other CUDA": (
        lambda b: b.write("usr/local/cuda/version.json", '{"cuda": {"version": "12.6.11"}}'),
        ("CUDA", "warning", r"12\.6\.11", "point /usr/local/cuda at its toolkit"),
    ),
    "no CUDA": (
        lambda b: b.remove("usr/local/cuda"),
        (
            "CUDA",
            "warning",
            "none in /usr/local/cuda, and no libcudart",
            "sudo apt install nvidia-jetpack",
        ),
    ),
    "other CUDA without a toolkit": (
        lambda b: (
            b.remove("usr/local/cuda"),
            b.write("usr/lib/aarch64-linux-gnu/libcudart.so.12.6.68", ""),
        ),
        ("CUDA", "warning", r"^12\.6\.68$", "sudo apt install nvidia-jetpack"),
    ),
    "wrong Python": (
        lambda b: setattr(b, "python", "3.11.7"),
        ("Python", "error", r"3\.11\.7", r"python3\.12 -m venv --system-site-packages"),
    ),
    "low power mode": (
        lambda b: b.commands.update({"nvpmodel -q": "NV Power Mode: 15W\n0\n"}),
        ("power mode", "warning", r"15W \(mode 0\)", "^sudo nvpmodel -m 2; then build the plans"),
    ),
    "unknown power mode": (
        lambda b: b.commands.pop("nvpmodel -q"),
        ("power mode", "warning", "unknown", "sudo nvpmodel -m 2"),
    ),
    "low mode and no list of them": (
        lambda b: (
            b.commands.update({"nvpmodel -q": "NV Power Mode: 15W\n0\n"}),
            b.remove("etc/nvpmodel.conf"),
        ),
        ("power mode", "warning", "15W", "sudo nvpmodel -p --verbose; sudo nvpmodel -m NUMBER"),
    ),
    "free clocks": (
        lambda b: b.write("sys/class/devfreq/17000000.gpu/min_freq", "306000000"),
        ("clocks", "warning", "free: GPU 1020 of 1020 MHz", "sudo jetson_clocks"),
    ),
    "one free core": (
        lambda b: b.write("sys/devices/system/cpu/cpu4/cpufreq/scaling_min_freq", "115200"),
        ("clocks", "warning", "free: CPU 1728 of 1728 MHz", "sudo jetson_clocks"),
    ),
    "clocks that cannot be read": (
        lambda b: (b.remove("sys/devices/system/cpu"), b.remove("sys/class/devfreq")),
        ("clocks", "warning", "not readable", "sudo jetson_clocks"),
    ),
    "too hot": (
        lambda b: b.write("sys/class/thermal/cooling_device1/cur_state", "1"),
        ("throttling", "warning", "gpu-throttle-alert at 1", "^cool it"),
    ),
    "too weak a supply": (
        lambda b: b.write("sys/class/hwmon/hwmon2/oc3_event_cnt", "37"),
        ("throttling", "warning", "37 oc3 events since boot", "stronger supply"),
    ),
    "no swap": (
        lambda b: b.write("proc/meminfo", "MemTotal: 7717172 kB\nMemAvailable: 5460416 kB\n"),
        ("swap", "warning", r"0\.0 GB", "fallocate -l 8G /swapfile .*swapon"),
    ),
    "too little memory": (
        lambda b: b.write("proc/meminfo", "MemTotal: 7717172 kB\nMemAvailable: 409600 kB\n"),
        ("memory", "error", r"0\.4 GB available of 7\.9 GB", "isolate multi-user.target"),
    ),
    "full disk": (
        lambda b: setattr(b, "free_bytes", 10**8),
        ("disk", "error", r"0\.1 GB free at ", r"free 0\.9 GB there"),
    ),
    "no real time": (
        lambda b: setattr(b, "priority", 0),
        ("real time", "warning", "up to 0", "rtprio 80.*limits.d.*log in again"),
    ),
    "no camera": (
        lambda b: b.remove("sys/bus/usb/devices/2-1"),
        ("camera", "warning", "no RealSense on USB", "lsusb -d 8086:"),
    ),
    "USB 2 camera": (
        lambda b: b.write("sys/bus/usb/devices/2-1/speed", "480\n"),
        ("camera", "warning", r"435i on USB 2 \(480 Mbit/s\)", "USB 3 cable that came with it"),
    ),
    "a camera without firmware": (
        lambda b: b.write("sys/bus/usb/devices/2-1/idProduct", "0adb\n"),
        ("camera", "warning", "435i waits for a firmware", "^give it one: rs-fw-update -r -f FILE"),
    ),
    "no hidraw": (
        lambda b: b.remove("sys/class/hidraw"),
        ("hidraw", "warning", "missing, as in the kernel of JetPack 6", "FORCE_RSUSB_BACKEND=ON"),
    ),
}


def test_a_board_on_which_pycuda_loads_is_not_asked_for_a_compiler(tmp_path):
    board = plant(NANO, tmp_path)
    board.tools.clear()
    assert not {"nvcc", "g++", "python3-dev", "python3-venv"} & board.findings().keys()


def test_a_board_that_can_build_pycuda_is_told_so(tmp_path):
    board = plant(NANO, tmp_path)
    board.fail("pycuda.driver", "No module named 'pycuda'")
    board.write("usr/include/python3.12/Python.h", "")
    board.write("usr/lib/python3.12/ensurepip/__init__.py", "")
    findings = board.findings()
    for name in ("nvcc", "g++", "python3-dev", "python3-venv"):
        assert findings[name].severity == "ok"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_with_its_remedy(fault, tmp_path):
    edit, (name, severity, found, remedy) = FAULTS[fault]
    board = plant(NANO, tmp_path)
    edit(board)
    findings = board.findings()
    finding = findings[name]
    assert finding.severity == severity
    assert re.search(found, finding.found)
    assert re.search(remedy, finding.remedy)
    assert finding.expected
    assert all(f.remedy for f in findings.values() if f.severity != "ok")
    assert exit_code(list(findings.values())) >= {"warning": 1, "error": 2}[severity]


def test_a_healthy_finding_has_no_remedy(tmp_path):
    findings = plant(NANO, tmp_path).findings().values()
    assert {finding.remedy for finding in findings} == {""}


def test_without_a_release_file_the_same_software_is_enough(tmp_path):
    board = plant("orin-nano-jetpack-6.2", tmp_path)
    board.write("etc/nv_tegra_release", "")
    findings = board.findings()
    words = ("GPU", "CUDA", "TensorRT", "Python")
    assert [findings[word].severity for word in words] == ["ok"] * 4
    assert findings["Python"].expected == "3.10", "of the release that has this software"
    assert not [finding for finding in findings.values() if finding.severity == "error"]


def test_a_container_that_hides_the_device_tree_is_on_a_jetson_still(tmp_path):
    board = plant(NANO, tmp_path)
    board.remove("proc/device-tree")
    board.write("sys/devices/soc0/family", "Tegra\n")
    for number, sm in (("35", "8.7"), ("38", "11.0"), ("25", None)):
        board.write("sys/devices/soc0/soc_id", f"{number}\n")
        assert board.machine().sm == sm
    board.write("sys/devices/soc0/soc_id", "35\n")
    board.remove("etc/nv_tegra_release")
    assert board.machine().is_jetson
    board.write("sys/devices/soc0/family", "i.MX\n")
    assert not board.machine().is_jetson


@pytest.mark.parametrize(
    ("library", "version"),
    [
        ("usr/local/cuda/lib64/libcudart.so.13", "13"),
        ("usr/local/cuda/targets/aarch64-linux/lib/libcudart.so.13.2.75", "13.2.75"),
        ("usr/local/cuda-13.2/lib64/libcudart.so.13.2.75", "13.2.75"),
        ("usr/local/cuda-13.2/targets/sbsa-linux/lib/libcudart.so.13.2.75", "13.2.75"),
        ("usr/lib/aarch64-linux-gnu/libcudart.so.13.2.75", "13.2.75"),
    ],
)
def test_without_a_toolkit_the_library_says_which_cuda_it_is(library, version, tmp_path):
    board = plant(NANO, tmp_path)
    board.remove("usr/local/cuda/version.json")
    board.write(library, "")
    board.write(str(Path(library).with_name("libcudart.so.13")), "")
    finding = board.findings()["CUDA"]
    assert (finding.severity, finding.found) == ("ok", version)


@pytest.mark.parametrize(
    ("number", "product", "has_imu"),
    [
        ("0b07", "Intel(R) RealSense(TM) Depth Camera 435", False),
        ("0b07", "Intel(R) RealSense(TM) Depth Camera 435i", False),  # the number is surer
        ("0ad3", "Intel(R) RealSense(TM) Depth Camera 415", False),
        ("0b5b", "Intel(R) RealSense(TM) Depth Camera 405", False),
        ("0b3a", "Intel(R) RealSense(TM) Depth Camera 435i", True),
        ("0b5c", "Intel(R) RealSense(TM) Depth Camera 455", True),
        ("abcd", "Intel(R) RealSense(TM) Depth Camera 457", True),
        ("1234", "Intel(R) RealSense(TM) Depth Camera 499i", True),  # newer than the table
        ("1234", "Intel(R) RealSense(TM) Depth Camera 499", False),
    ],
)
def test_raw_hid_devices_are_asked_for_with_a_camera_that_has_one(
    number, product, has_imu, tmp_path
):
    """Maintainers of librealsense: a camera without an IMU works without them."""
    board = plant(NANO, tmp_path)
    board.remove("sys/class/hidraw")
    board.write("sys/bus/usb/devices/2-1/idProduct", f"{number}\n")
    board.write("sys/bus/usb/devices/2-1/product", f"{product}\n")
    findings = board.findings()
    assert findings["camera"].severity == "ok"
    assert ("hidraw" in findings) == has_imu


@pytest.mark.parametrize("number", ["0aaa", "0a2b", "0b00x", "9a13"])
def test_intels_other_devices_are_no_cameras(number, tmp_path):
    """8086:0aaa and 8086:0a2b are Bluetooth, on USB 1, without a name."""
    board = plant(NANO, tmp_path)
    board.write("sys/bus/usb/devices/1-3/idVendor", "8086\n")
    board.write("sys/bus/usb/devices/1-3/idProduct", f"{number}\n")
    board.write("sys/bus/usb/devices/1-3/speed", "12\n")
    (camera,) = (f for f in doctor(board.machine(), None, board.probe()) if f.name == "camera")
    assert camera.severity == "ok"
    assert "435i" in camera.found


def test_a_camera_that_does_not_say_its_name_has_one(tmp_path):
    board = plant(NANO, tmp_path)
    board.remove("sys/bus/usb/devices/2-1/product")
    assert board.findings()["camera"].found.startswith("RealSense D435i on USB 3")


@pytest.mark.parametrize(
    ("name", "modes", "wanted"),
    [
        ("agx-orin-jetpack-6.2", None, "sudo nvpmodel -m 0"),
        ("orin-nano-jetpack-6.2", None, "sudo nvpmodel -m 2"),
        ("orin-nano-jetpack-6.2", "ID=5 NAME=MAXN >\n< POWER_MODEL ID=9 NAME=MAXN_SUPER", "-m 9"),
        ("orin-nano-jetpack-6.2", "ID=4 NAME=MODE_7W >\n< POWER_MODEL ID=7 NAME=40W", "-m 7"),
    ],
)
def test_the_number_of_the_power_mode_is_the_modules_own(name, modes, wanted, tmp_path):
    board = plant(name, tmp_path)
    if modes is not None:
        board.write("etc/nvpmodel.conf", f"< POWER_MODEL {modes} >\n")
    assert wanted in board.findings()["power mode"].remedy


def test_a_later_tensorrt_is_for_the_boards_that_nvidia_names(tmp_path):
    """11.4 on AGX Orin and Thor with JetPack 7.2.2; not on a Nano."""
    for name, severity in (("agx-orin-jetpack-7.2", "ok"), (THOR, "ok"), (NANO, "error")):
        board = plant(name, tmp_path / name)
        board.write("etc/nv_tegra_release", "# R39 (release), REVISION: 2.2, GCID: 1")
        board.wheels["tensorrt"] = "11.4.1"
        assert board.findings()["TensorRT"].severity == severity
        board.wheels["tensorrt"] = "10.16.1.11"
        assert board.findings()["TensorRT"].severity == "ok"


def test_without_bindings_the_library_is_what_is_compared(tmp_path):
    board = plant("orin-nano-jetpack-6.2", tmp_path)
    del board.wheels["tensorrt"]
    assert board.findings()["TensorRT"].found == "10.3.0.30"


def test_a_jetpack_of_the_table_is_one_where_nobody_says_which_gpu_it_is(tmp_path):
    """A container without the device tree: that is what is wrong, and not the JetPack."""
    board = plant("orin-nano-jetpack-6.2", tmp_path)
    board.remove("proc/device-tree")
    found = board.findings()
    assert found["GPU"].severity == "error" and found["JetPack"].severity == "ok"
    board.write("etc/nv_tegra_release", "# R36 (release), REVISION: 9.9, GCID: 1")
    assert board.findings()["JetPack"].severity == "warning"


def test_rows_of_the_table_begin_and_end_where_nvidias_releases_do():
    compatible = ("nvidia,p3767-0000", "nvidia,tegra234")
    known = ("36.4.0", "36.4.7", "36.5.0", "36.5.2", "39.2.0", "39.2.1")
    unknown = ("36.3.0", "36.6.0", "38.4.0", "39.1.0", "39.3.0", "")
    assert all(len(releases_for(l4t, "8.7", compatible)) == 1 for l4t in known)
    assert not any(releases_for(l4t, "8.7", compatible) for l4t in unknown)
    assert not releases_for("36.4.3", "11.0", ("nvidia,p3834-0008",))  # JetPack 6 has no Thor
    assert len(releases_for("39.2.2", "11.0", ("nvidia,p3834-0008",))) == 2
    assert all(row.first <= (*row.last, 99) for row in RELEASES)


@pytest.fixture
def bundle(demo_bundle, tmp_path):
    """A copy that a test may damage."""
    target = tmp_path / "bundle"
    shutil.copytree(demo_bundle, target, copy_function=lambda a, b: Path(b).hardlink_to(a))
    return target


def retarget(bundle: Path, target: str, base: str = "bfloat16", **changes: str) -> None:
    path = bundle / "manifest.json"
    raw = json.loads(path.read_text()) | changes
    raw["recipe"] |= {"target": target, "base": base}
    path.unlink()
    path.write_text(json.dumps(raw))


def test_a_damaged_bundle_is_an_error_with_the_readers_words(bundle, tmp_path):
    (bundle / "golden.npz").unlink()
    findings = plant(NANO, tmp_path / "board").findings(bundle)
    assert findings["bundle"].severity == "error"
    assert "golden.npz: missing; copy the bundle again" in findings["bundle"].found
    assert "copy it again from where it was exported" in findings["bundle"].remedy
    assert "recipe" not in findings


def test_a_bundle_that_is_not_there_is_an_error(tmp_path):
    finding = plant(NANO, tmp_path / "board").findings(tmp_path / "none")["bundle"]
    assert finding.severity == "error"
    assert "no such folder" in finding.found


@pytest.mark.parametrize(
    ("board", "target", "severity", "remedy"),
    [
        (NANO, "orin", "ok", ""),
        (
            NANO,
            "thor",
            "error",
            "export it again for this board: python -m export build orin-mixed",
        ),
        (NANO, "cpu", "warning", "python -m export build orin-mixed"),
        (THOR, "thor", "ok", ""),
        (THOR, "orin", "error", "python -m export build thor-fp8"),
    ],
)
def test_a_recipe_for_another_target_is_found(board, target, severity, remedy, bundle, tmp_path):
    retarget(bundle, target)
    finding = plant(board, tmp_path / "board").findings(bundle)["recipe"]
    assert finding.severity == severity
    assert finding.found.endswith(f"made for: {target}")
    assert remedy in finding.remedy


def test_a_pc_runs_what_is_made_for_a_cpu_and_the_twin_of_the_rest(bundle, tmp_path):
    board = pc(tmp_path / "pc")
    assert board.findings(bundle)["recipe"].severity == "ok"
    retarget(bundle, "orin")
    finding = board.findings(bundle)["recipe"]
    assert finding.severity == "error"
    assert f"python -m export twin --bundle {bundle} --out {bundle}-twin" in finding.remedy
    retarget(bundle, "orin", twin_of="6cbe4a06ea22402e")
    assert board.findings(bundle)["recipe"].severity == "ok"


def test_a_pc_runs_float16_though_not_at_its_best(bundle, tmp_path):
    """ONNX Runtime has it on a CPU, with casts."""
    retarget(bundle, "orin", base="float16")
    finding = pc(tmp_path / "pc").findings(bundle)["recipe"]
    assert finding.severity == "warning"
    assert finding.remedy == "it runs, not at its best: python -m export build float32"


def test_a_board_is_warned_of_a_twin(bundle, tmp_path):
    retarget(bundle, "orin", twin_of="6cbe4a06ea22402e")
    finding = plant(NANO, tmp_path / "board").findings(bundle)["recipe"]
    assert finding.severity == "warning"
    assert finding.found.endswith("made for: orin (its float32 twin)")
    assert finding.remedy == "run the bundle that it is the twin of"


def test_memory_and_disk_are_what_the_engines_of_the_bundle_take(bundle, tmp_path):
    """One and a half times the engines, and 1 GB."""
    board = plant(NANO, tmp_path / "board")
    engines = sum(path.stat().st_size for path in (bundle / "engines").iterdir())
    needed = 10**9 + round(1.5 * engines)
    for spare, severity in ((1024, "ok"), (-1024, "error")):
        kibibytes = -(-needed // 1024) + spare
        meminfo = f"MemTotal: 7717172 kB\nMemAvailable: {kibibytes} kB\n"
        board.write("proc/meminfo", meminfo)
        board.free_bytes = needed + spare
        findings = board.findings(bundle)
        assert findings["memory"].severity == severity
        assert findings["disk"].severity == severity


def test_a_board_too_small_for_the_engines_is_told_so(bundle, tmp_path):
    board = plant(NANO, tmp_path / "board")
    board.write("proc/meminfo", "MemTotal: 900000 kB\nMemAvailable: 800000 kB\n")
    assert "export a smaller recipe" in board.findings(bundle)["memory"].remedy


def run_main(board, *arguments):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return main_doctor(parser.parse_args(arguments), board.probe())


def test_the_table_says_what_is_wrong_and_what_to_do(tmp_path, capsys, monkeypatch):
    board = plant("orin-nano-jetpack-6.2", tmp_path)
    monkeypatch.setattr("platform.python_version", lambda: board.python)
    assert run_main(board) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super")
    at = next(number for number, line in enumerate(lines) if "power mode" in line)
    assert lines[at].split() == ["warning", "power", "mode", "25W", "(mode", "1)"]
    assert lines[at + 1].strip() == "expected: MAXN_SUPER (mode 2)"
    assert lines[at + 2].strip().startswith("to do: sudo nvpmodel -m 2")
    assert lines[-1] == "ok: 20, warning: 3, error: 0"


def test_json_holds_the_machine_and_every_finding(tmp_path, capsys, monkeypatch, demo_bundle):
    board = plant(NANO, tmp_path)
    monkeypatch.setattr("platform.python_version", lambda: "3.8.1")
    assert run_main(board, str(demo_bundle), "--json") == 2
    told = json.loads(capsys.readouterr().out)
    assert told["machine"]["power_mode"] == {"name": "MAXN_SUPER", "number": 2}
    by_name = {finding["name"]: finding for finding in told["findings"]}
    assert by_name["Python"]["severity"] == "error"
    assert by_name["bundle"]["severity"] == "ok"


def test_this_machine_is_asked_by_default(tmp_path):
    names = [finding.name for finding in doctor(read_machine())]
    assert {"Python", "numpy", "memory", "disk"} <= set(names)
    assert Probe().version_of("numpy") == installed_version("numpy")
    assert installed_version("no-such-distribution") is None
    assert free_bytes(tmp_path / "not" / "there") > 0
    assert realtime_priority() >= -1
