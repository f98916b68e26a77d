"""A machine says what it is by its files, and says None where it has none of them."""

import os
import sys
from pathlib import Path

import pytest

from runtime.board.cameras import has_hidraw, read_cameras
from runtime.board.machine import (
    PowerMode,
    peak_bytes,
    read_clocks,
    read_machine,
    read_power_w,
    read_temperatures,
    read_throttling,
    run_command,
)
from runtime.board.tegrastats import Load, Rail, parse_tegrastats, read_tegrastats
from tests.runtime.boards.tree import BOARDS, pc, plant

# name: board, L4T, JetPack, SM, CUDA, TensorRT, power mode, CPUs, GiB of memory rounded up
WHAT_THEY_ARE = {
    "agx-orin-jetpack-6.2": (
        "NVIDIA Jetson AGX Orin Developer Kit",
        *("36.4.3", "6.2", "8.7", "12.6.11", "10.3.0.30", ("MODE_50W", 3), 12, 62),
    ),
    "agx-orin-jetpack-7.2": (
        "NVIDIA Jetson AGX Orin Developer Kit",
        *("39.2.2", "7.2.2", "8.7", "13.2.0", "11.4.1.3", ("MAXN", 0), 12, 62),
    ),
    "agx-thor-jetpack-7.2": (
        "NVIDIA Jetson AGX Thor Developer Kit",
        *("39.2.0", "7.2", "11.0", "13.2.0", "10.16.1.11", ("120W", 1), 14, 123),
    ),
    "orin-nano-jetpack-6.2": (
        "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
        *("36.4.3", "6.2", "8.7", "12.6.11", "10.3.0.30", ("25W", 1), 6, 8),
    ),
    "orin-nano-jetpack-7.2": (
        "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
        *("39.2.0", "7.2", "8.7", "13.2.0", "10.16.1.11", ("MAXN_SUPER", 2), 6, 8),
    ),
    "orin-nx-jetpack-6.2": (
        "NVIDIA Jetson Orin NX Engineering Reference Developer Kit Super",
        *("36.4.4", "6.2.1", "8.7", "12.6.11", "10.3.0.30", ("MAXN_SUPER", 0), 8, 16),
    ),
    "orin-nx-jetpack-7.2": (
        "NVIDIA Jetson Orin NX Engineering Reference Developer Kit Super",
        *("39.2.1", "7.2.1", "8.7", "13.2.0", "10.16.1.11", ("25W", 3), 8, 16),
    ),
}


@pytest.mark.parametrize("name", BOARDS)
def test_a_board_says_what_it_is(name, tmp_path):
    machine = plant(name, tmp_path).machine()
    mode = machine.power_mode
    assert mode is not None
    assert WHAT_THEY_ARE[name] == (
        machine.board,
        machine.l4t,
        machine.jetpack,
        machine.sm,
        machine.cuda,
        machine.tensorrt,
        (mode.name, mode.number),
        machine.num_cpus,
        -(-machine.memory_bytes // 2**30),
    )
    assert machine.is_jetson
    assert mode in machine.power_modes
    assert 0 < machine.available_bytes < machine.memory_bytes


def test_an_x86_machine_has_none_of_it(tmp_path):
    machine = pc(tmp_path).machine()
    assert machine.board == "x86_64"
    assert not machine.is_jetson
    assert machine.num_cpus == 2
    assert machine.memory_bytes == 24684084 * 1024
    nothing = (machine.l4t, machine.jetpack, machine.sm, machine.cuda, machine.tensorrt)
    assert {*nothing, machine.power_mode} == {None}
    assert machine.power_modes == machine.compatible == ()


def test_a_machine_without_any_file_is_read_too(tmp_path):
    machine = read_machine(tmp_path, lambda arguments: "")
    assert (machine.board, machine.memory_bytes, machine.num_cpus) == ("unknown", 0, 0)
    assert read_clocks(tmp_path).gpu is read_clocks(tmp_path).emc is None
    assert read_temperatures(tmp_path) == read_power_w(tmp_path) == {}
    assert read_cameras(tmp_path) == read_clocks(tmp_path).cpus == ()


@pytest.mark.parametrize(
    ("cpuinfo", "nproc", "number"),
    [
        ("processor\t: 0\nBogoMIPS : 62\nprocessor\t: 1\n\nmodel name : processor: 9\n", "7", 2),
        ("", "4\n", 4),
        ("", "nproc: no such thing", 0),
    ],
)
def test_without_sys_the_cpus_are_counted_otherwise(cpuinfo, nproc, number, tmp_path):
    board = plant("orin-nano-jetpack-7.2", tmp_path)
    board.remove("sys")
    board.write("proc/cpuinfo", cpuinfo)
    board.commands["nproc"] = nproc
    assert board.machine().num_cpus == number


def test_this_machine_is_read_with_its_own_python():
    machine = read_machine()
    assert machine.python == ".".join(map(str, sys.version_info[:3]))
    assert machine.memory_bytes > 0
    assert machine.num_cpus >= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("text", "l4t", "jetpack"),
    [
        ("# R35 (release), REVISION: 4.1, GCID: 1, BOARD: t186ref", "35.4.1", "5"),
        ("# R36 (release), REVISION: 4.0, GCID: 1", "36.4.0", "6.1"),
        ("# R36 (release), REVISION: 5.2, GCID: 1", "36.5.2", "6.2.2"),
        ("# R38 (release), REVISION: 4.0, GCID: 1", "38.4.0", "7.1"),
        ("# R41 (release), REVISION: 1.0, GCID: 1", "41.1.0", None),
        ("something else", None, None),
    ],
)
def test_the_release_is_parsed_and_jetpack_derived(text, l4t, jetpack, tmp_path):
    board = plant("orin-nano-jetpack-6.2", tmp_path)
    board.write("etc/nv_tegra_release", text)
    machine = board.machine()
    assert (machine.l4t, machine.jetpack) == (l4t, jetpack)


def test_without_nvpmodel_the_mode_comes_from_its_status_file(tmp_path):
    board = plant("orin-nano-jetpack-6.2", tmp_path)
    board.commands.clear()
    assert board.machine().power_mode is None
    board.write("var/lib/nvpmodel/status", "pmode:0002 fmode:quiet\n")
    assert board.machine().power_mode == PowerMode(name="MAXN_SUPER", number=2)


def test_without_its_file_the_modes_come_from_nvpmodel(tmp_path):
    board = plant("orin-nano-jetpack-6.2", tmp_path)
    board.remove("etc/nvpmodel.conf")
    assert board.machine().power_modes == ()
    board.commands["nvpmodel -p --verbose"] = (
        "NVPM VERB: Config file: /etc/nvpmodel.conf\n"
        "POWER_MODEL: ID=0 NAME=15W\nPOWER_MODEL: ID=2 NAME=MAXN_SUPER\n"
    )
    assert [mode.number for mode in board.machine().power_modes] == [0, 2]


def test_a_damaged_version_file_is_no_version(tmp_path):
    board = plant("orin-nano-jetpack-6.2", tmp_path)
    for text in ("{", "[]", "{}"):
        board.write("usr/local/cuda/version.json", text)
        assert board.machine().cuda is None


@pytest.mark.parametrize(
    ("name", "cpu", "gpu", "emc"),
    [
        ("orin-nano-jetpack-6.2", (729.6, 1344.0), (305.0, 918.0), (2133.0, 3199.0)),
        ("agx-orin-jetpack-6.2", (1113.6, 1497.6), (306.0, 828.75), None),  # EMC is root's there
        ("orin-nx-jetpack-7.2", (729.6, 1497.6), (306.0, 918.0), (2133.0, 3199.0)),
        ("agx-thor-jetpack-7.2", (2601.0, 2601.0), (315.0, 1575.0), (4266.0, 4266.0)),
    ],
)
def test_clocks_are_read_with_their_limits(name, cpu, gpu, emc, tmp_path):
    board = plant(name, tmp_path)
    clocks = read_clocks(tmp_path)
    assert len(clocks.cpus) == board.machine().num_cpus
    assert clocks.gpu is not None
    assert (clocks.cpus[0].now_mhz, clocks.cpus[0].max_mhz) == cpu
    assert (clocks.gpu.now_mhz, clocks.gpu.max_mhz) == gpu
    assert (clocks.emc and (clocks.emc.now_mhz, clocks.emc.max_mhz)) == emc
    assert not clocks.gpu.is_locked


def test_a_clock_that_can_take_one_value_is_locked(tmp_path):
    plant("orin-nx-jetpack-6.2", tmp_path)
    clocks = read_clocks(tmp_path)
    assert clocks.gpu is not None
    assert all(clock.is_locked for clock in (*clocks.cpus, clocks.gpu))


def test_temperatures_leave_out_zones_that_cannot_be_read_or_are_off(tmp_path):
    plant("orin-nx-jetpack-6.2", tmp_path)  # cv0 says -256, cv1 and cv2 refuse to be read
    assert read_temperatures(tmp_path) == {
        "cpu-thermal": 47.5,
        "gpu-thermal": 46.218,
        "soc0-thermal": 46.406,
        "soc1-thermal": 46.625,
        "soc2-thermal": 46.812,
        "tj-thermal": 47.5,
    }


@pytest.mark.parametrize(
    ("name", "watts"),
    [
        ("orin-nano-jetpack-6.2", {"VDD_IN": 5.394, "VDD_CPU_GPU_CV": 0.564, "VDD_SOC": 1.407}),
        (
            "agx-orin-jetpack-6.2",
            {"VDD_GPU_SOC": 3.15, "VDD_CPU_CV": 0.8, "VIN_SYS_5V0": 4.76, "VDDQ_VDD2_1V8AO": 0.6},
        ),
        (
            "agx-thor-jetpack-7.2",
            {"VDD_GPU": 6.33, "VDD_CPU_SOC_MSS": 6.51, "VIN_SYS_5V0": 6.52, "VIN": 28.906},
        ),
    ],
)
def test_power_is_volts_times_amperes_of_every_connected_rail(name, watts, tmp_path):
    plant(name, tmp_path)
    assert read_power_w(tmp_path) == pytest.approx(watts, abs=1e-3)


def test_throttling_names_what_cools_but_not_the_fan(tmp_path):
    board = plant("agx-orin-jetpack-6.2", tmp_path)  # its fan turns, and oc3 has counted
    assert read_throttling(tmp_path).cooling == {}
    assert read_throttling(tmp_path).over_current == {"oc1": 0, "oc2": 0, "oc3": 12}
    board.write("sys/class/thermal/cooling_device1/cur_state", "2\n")
    assert read_throttling(tmp_path).cooling == {"gpu-throttle-alert": 2}


def test_a_camera_is_told_from_other_devices_of_its_vendor(tmp_path):
    board = plant("orin-nano-jetpack-6.2", tmp_path)
    board.write("sys/bus/usb/devices/1-3/idVendor", "8086\n")
    board.write("sys/bus/usb/devices/1-3/idProduct", "9a13\n")
    board.write("sys/bus/usb/devices/1-3/product", "Thunderbolt Controller\n")
    (camera,) = read_cameras(tmp_path)
    assert camera.product == "Intel(R) RealSense(TM) Depth Camera 435i"
    assert camera.speed_mbps == 5000


def test_hidraw_shows_as_a_class_or_as_a_device(tmp_path):
    board = plant("orin-nano-jetpack-6.2", tmp_path)
    assert not has_hidraw(tmp_path)
    board.write("dev/hidraw0", "")
    assert has_hidraw(tmp_path)
    assert has_hidraw(plant("orin-nano-jetpack-7.2", tmp_path / "other").root)


# name: RAM, swap, cores that are on, GPU, EMC, a temperature, a rail
TEGRASTATS = {
    "agx-orin-jetpack-6.2": ((5848, 62832), (126, 31416), 8, (14, 611), (1, 2133), ("tj", 77.281),
                             ("VDD_CPU_CV", 14312, 12415)),
    "agx-orin-jetpack-7.2": ((20642, 62817), (None, None), 12, (0, 1300), (3, 3199),
                             ("cpu", 52.968), ("VIN_SYS_5V0", 4241, 4241)),
    "agx-thor-jetpack-7.2": ((3429, 125749), (None, None), 12, (None, 1574), (None, 4266),
                             ("gpu", 51.218), ("VDD_GPU", -392, 6330)),
    "orin-nano-jetpack-6.2": ((2467, 7619), (0, 3810), 4, (0, 305), (0, 2133), ("soc0", 46.406),
                              ("VDD_IN", 5394, 5394)),
    "orin-nano-jetpack-7.2": ((2242, 7536), (0, 3768), 6, (5, 1020), (3, 3199), ("gpu", 53.5),
                              ("VDD_IN", 7764, 7764)),
    "orin-nx-jetpack-6.2": ((3312, 15621), (0, 7810), 8, (99, 1173), (1, 3199), ("cpu", 52.25),
                            ("VDD_IN", 12480, 9120)),
    "orin-nx-jetpack-7.2": ((3104, 15537), (0, 7768), 8, (0, 306), None, ("tj", 44.25),
                            ("VDD_SOC", 1410, 1410)),
}  # fmt: skip


@pytest.mark.parametrize("name", BOARDS)
def test_a_line_of_tegrastats_is_read(name, tmp_path):
    stats = read_tegrastats(plant(name, tmp_path).run)
    ram, swap, cores, gpu, emc, (sensor, degrees), (rail, now, average) = TEGRASTATS[name]
    assert (stats.ram_used_mb, stats.ram_total_mb) == ram
    assert (stats.swap_used_mb, stats.swap_total_mb) == swap
    assert sum(core is not None for core in stats.cpus) == cores
    assert stats.gpu == Load(percent=gpu[0], mhz=gpu[1])
    assert stats.emc == (emc and Load(percent=emc[0], mhz=emc[1]))
    assert stats.temperatures_c[sensor] == degrees
    assert stats.power[rail] == Rail(now_mw=now, average_mw=average)


def test_a_line_of_jetpack_5_is_read():
    """Sensors in capitals, one clock of the GPU, a part that is off at -256 degrees."""
    stats = parse_tegrastats(
        "01-24-2024 09:17:09 RAM 3503/7337MB (lfb 7x1MB) SWAP 430/3668MB (cached 1MB) CPU "
        "[11%@729,13%@729,off,off] EMC_FREQ 0%@2133 GR3D_FREQ 7%@305 GR3D2_FREQ 7%@0 APE 174 "
        "CV0@-256C CPU@44.093C tj@46.968C VDD_IN 4915mW/4900mW"
    )
    core = Load(percent=11, mhz=729)
    assert stats.cpus == (core, Load(percent=13, mhz=729), None, None)
    assert stats.gpu == Load(percent=7, mhz=305)
    assert stats.temperatures_c == {"cpu": 44.093, "tj": 46.968}
    assert stats.power == {"VDD_IN": Rail(now_mw=4915, average_mw=4900)}


@pytest.mark.parametrize(
    ("text", "gpu"),
    [
        ("GR3D_FREQ 18%", Load(percent=18, mhz=None)),
        ("GR3D_FREQ @1300", Load(percent=None, mhz=1300)),
        ("GR3D_FREQ 20%@[0,611]", Load(percent=20, mhz=611)),
        ("GR3D_FREQ off", None),
        ("", None),
    ],
)
def test_each_way_of_writing_the_gpu_is_read(text, gpu):
    assert parse_tegrastats(f"RAM 1/2MB CPU [0%,off]@2601 {text} VIC off").gpu == gpu


def test_one_clock_behind_the_list_is_that_of_every_core():
    stats = parse_tegrastats("RAM 1/2MB CPU [5%,off]@2601")
    assert stats.cpus == (Load(percent=5, mhz=2601), None)
    assert parse_tegrastats("RAM 1/2MB").cpus == ()


def test_other_text_is_refused_with_what_is_expected():
    with pytest.raises(ValueError, match=r"not a line of tegrastats: got 'Unknown option'.*RAM 24"):
        parse_tegrastats("Unknown option")


def test_the_most_memory_of_a_process_is_what_the_kernel_says(tmp_path):
    status = tmp_path / "proc/self/status"
    status.parent.mkdir(parents=True)
    status.write_text("Name:\tpython\nVmPeak:\t  9000 kB\nVmHWM:\t  2048 kB\nVmRSS:\t  1024 kB\n")
    assert peak_bytes(tmp_path) == 2048 * 1024
    held = bytearray(os.urandom(1 << 20)) * 64
    for root in (Path("/"), tmp_path / "elsewhere"):
        assert len(held) < peak_bytes(root) < 1 << 40


def test_a_missing_command_prints_nothing():
    assert run_command(["no-such-command-anywhere"]) == ""


def test_a_command_is_run_without_a_shell():
    assert run_command([sys.executable, "-c", "print('$HOME')"]) == "$HOME\n"


def test_a_command_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr("runtime.board.machine.COMMAND_TIMEOUT_S", 0.01)
    assert run_command([sys.executable, "-c", "import threading; threading.Event().wait()"]) == ""
