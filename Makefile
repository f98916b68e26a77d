.DEFAULT_GOAL := help

PYTHON     ?= python3
RECIPE     ?= float32
HOST       ?=
CHECKPOINT ?= models/demo/checkpoint
BUNDLE     ?= build/demo/bundle
IMAGE      ?= 112 112
IS_DEMO    := $(if $(subst models/demo/checkpoint,,$(CHECKPOINT)),,yes)
TOKENS     ?= $(if $(IS_DEMO),64)
EPISODES   ?= $(if $(IS_DEMO),models/demo/episodes)
HELD_OUT   ?= $(if $(IS_DEMO),models/demo/held_out)
GOLDEN     ?=
STUDY      ?= $(if $(IS_DEMO),quant/orin-mixed.json)
REPORT     ?= build/demo/report.html
CONFIG     ?= full
BOARD      ?= agx-orin-64gb
TASKS      ?= touch-red touch-green touch-blue button-press-topdown
EMBODIMENT ?=
CAMERA     ?=
KEY        ?= keys/release.key
HOSTS      ?=
L4T        ?=
TRUST      ?= $(wildcard keys/release.pub)
JETPACK    ?= 6
KINDS      ?= tensorrt serve signed
WHEELHOUSE ?= build/wheelhouse
ARGS       ?=

quoted = '$(subst ','\'',$(1))'
said = $(filter command environment,$(origin $(1)))
given = $(if $(call said,$(2)),$(1) $(call quoted,$($(2))))
option = $(if $(2),$(1) $(call quoted,$(2)))

VENV  := .venv
PY    := $(VENV)/bin/python
PIP   := $(PY) -m pip --disable-pip-version-check --quiet install
STAMP := $(VENV)/.stamp
DATA  := build/demo-data/button-press-topdown.npz
BLINKS := build/blinks/touch-what-blinked-999.npz

.PHONY: help setup demo test help-times test-full test-depth test-full-size test-gpu bench-gpu check storm cameras mutants export forecast run bench bench-changes bench-pictures eval delays gate planted w8a8 sensitivity success recall mesa libusb sshd chromium board-tools virtual-board virtual-flash power-cuts record-demo train-demo readout-demo train-recall fuzz-server fuzz-release keys sign flash flash-os rollback status openpi-episodes test-lerobot test-ansible test-ros2 bench-loop soak-loop soak-ticks robot-wheel wheelhouse resolve test-aarch64 device-test clean distclean

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t16

setup: $(STAMP) ## make .venv with the pinned dependencies and the anchorvla command; again when the pins change

$(STAMP): requirements/dev.txt requirements/dev-no-deps.txt pyproject.toml
	@echo "setup: $(VENV) with the pins of requirements/dev*.txt (minutes the first time)"
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v >= (3, 10) or sys.exit("setup: Python %d.%d is too old, 3.10 or newer is needed: make setup PYTHON=python3.12" % v)'
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) -r requirements/dev.txt
	@$(PIP) --no-deps -r requirements/dev-no-deps.txt
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup mesa ## the whole job on the shipped policy: export, run in real time, report
	$(PY) -m export demo

test: setup libusb sshd ## the quick tests; no GPU needed
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not full and not gpu" $(ARGS)

help-times: setup ## how long every command takes to answer --help and a wrong argument
	$(PY) -m tests.help_times

test-full: setup libusb sshd ## all tests, at the published widths too
	$(PY) -m pytest -m "not gpu" $(ARGS)

test-depth: setup ## all layers at full width against the libraries, a layer at a time; docs/results/depth.json
	$(PY) -m export depth --results docs/results $(ARGS)
	$(PY) -m export results

test-full-size: setup ## checkpoints of the published size through export, compiler and a tick; 50 GB of disk, hours on 2 cores
	$(PY) -m export full-size --results docs/results $(ARGS)
	$(PY) -m export results

test-gpu: setup ## the runtime on a real CUDA driver, with torch's kernels for TensorRT's; needs a GPU, pycuda and torch with CUDA
	$(PY) -m pytest -m gpu $(ARGS)

bench-gpu: setup ## what a tick of BUNDLE costs there, replayed as CUDA graphs and enqueued; needs the same
	$(PY) -m tests.on_gpu $(call quoted,$(BUNDLE)) $(ARGS)

storm: setup ## a million adversarial chunks against the action guard; 0 violations on the wire (10 minutes)
	$(PY) -m tests.guard_storm $(ARGS)

soak-loop: setup mesa ## BUNDLE on the simulator in real time, 30 minutes at 20 Hz: violations, watchdog, misses, jitter, age at the wire
	$(PY) -m tests.loop_soak $(call quoted,$(BUNDLE)) $(ARGS)

soak-ticks: setup ## a million control ticks on a clock of their own, with faults planted: does the process grow (20 minutes)
	$(PY) -m tests.loop_ticks $(ARGS)

bench-loop: setup ## what loop, executor and guard cost in a control tick, without robot and policy
	$(PY) -m tests.loop_bench $(ARGS)

cameras: setup libusb ## unplug the SDK's software camera 100 times, kill its process 50 times: recovery, and no stale or torn frame (15 minutes)
	$(PY) -m tests.camera_cycles $(ARGS)

mutants: setup ## small faults planted in the core: which does no test notice (40 minutes on 2 cores)
	$(PY) -m tests.mutants $(ARGS)

check: setup ## format, lint, types, import rules (what CI runs)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-logo

export: setup ## CHECKPOINT -> BUNDLE for IMAGE (width height); RECIPE calibrated on EPISODES, judged by HELD_OUT
	$(PY) -m export build $(RECIPE) --checkpoint $(call quoted,$(CHECKPOINT)) \
		--out $(call quoted,$(BUNDLE)) --image-size $(IMAGE) $(call option,--tokens,$(TOKENS)) \
		$(call option,--calibration,$(EPISODES)) $(call option,--held-out,$(HELD_OUT)) \
		$(call option,--golden,$(GOLDEN)) $(call option,--camera,$(CAMERA)) \
		$(call option,--sensitivity,$(STUDY)) $(ARGS)

keys: setup ## a pair of keys in keys/: one signs releases, boards are told to trust the other
	$(PY) -m export keys $(ARGS)

sign: setup ## sign BUNDLE with KEY, so that boards which trust it run the bundle
	$(PY) -m export sign $(call quoted,$(BUNDLE)) --key $(call quoted,$(KEY)) $(ARGS)

flash: setup ## signed BUNDLE -> HOST=user@orin, or HOSTS=file of many: proven there, switched to, confirmed or taken back
	$(PY) -m export $(if $(HOSTS),fleet $(call option,--hosts,$(HOSTS)),flash $(call option,--host,$(HOST))) \
		--bundle $(call quoted,$(BUNDLE)) $(call option,--trust,$(TRUST)) $(ARGS)

flash-os: setup ## signed BUNDLE -> root file system of L4T=path/to/Linux_for_Tegra, for BOARD, which proves it at its first boot; with sudo
	$(PY) -m export flash-os $(call given,--board,BOARD) $(call option,--l4t,$(L4T)) \
		--bundle $(call quoted,$(BUNDLE)) $(call option,--trust,$(TRUST)) $(ARGS)

rollback: setup ## HOST returns to the release before
	$(PY) -m export rollback $(call option,--host,$(HOST)) $(ARGS)

status: setup ## what runs on HOST, since when, how soon it answers, what happened last
	$(PY) -m export status $(call option,--host,$(HOST)) $(ARGS)

forecast: setup ## what CONFIG, or CHECKPOINT, will cost and give on BOARD in RECIPE: time, memory, rate, energy; no weights
	$(PY) -m export forecast --config $(call quoted,$(CONFIG)) --board $(BOARD) \
		$(call given,--recipe,RECIPE) $(call given,--checkpoint,CHECKPOINT) \
		$(call given,--tokens,TOKENS) $(if $(call said,IMAGE),--image-size $(IMAGE)) $(ARGS)

run: setup ## run BUNDLE on the recorded EPISODES, write REPORT
	$(PY) -m runtime run $(call quoted,$(BUNDLE)) $(call option,--episodes,$(EPISODES)) \
		--report $(call quoted,$(REPORT)) $(call option,--embodiment,$(EMBODIMENT)) \
		$(call option,--camera,$(CAMERA)) $(ARGS)

bench: setup ## time the runtime beside the plain composition, interleaved in one run
	$(PY) -m export bench --results docs/results

bench-changes: setup ## a tick in which one input changed, beside one of everything and what transformers composes (15 minutes on 2 cores)
	$(PY) -m export bench-changes vlaadapter-thin sgvla-thin upvla-thin smolvla-thin --results docs/results $(ARGS)
	$(PY) -m export results

bench-pictures: setup ## a tick with 1, 4 and 8 different pictures, warm, recomputed and as transformers composes it, beside the limit of any cache (10 minutes on 2 cores)
	$(PY) -m export bench-pictures eventvla-thin-recent eventvla-thin \
		--limits eventvla-one-view eventvla-robotwin --results docs/results $(ARGS)
	$(PY) -m export results

eval: setup mesa ## closed-loop success of BUNDLE on TASKS, with a film and a contact sheet
	$(PY) -m device_tests.success $(call quoted,$(BUNDLE)) --tasks $(TASKS) --json build/eval/success.json \
		--sheet build/eval/sheet.png --film build/eval/film.gif $(ARGS)

delays: setup mesa ## success and motion of BUNDLE on TASKS by the control steps that a thought takes: sync, async and rtc (two hours)
	$(PY) -m device_tests.success.delays $(call quoted,$(BUNDLE)) --tasks $(TASKS) --episodes 100 \
		--json build/eval/delays.json $(ARGS)

gate: setup mesa ## what each recipe costs in closed loop, success and motion, and float32 with 8 samples: 600 episodes paired with float32 (30 minutes)
	$(PY) -m export gate $(ARGS)

planted: setup mesa ## does the motion gate catch wrong scales that success lets pass (25 minutes)
	$(PY) -m export planted $(ARGS)

w8a8: setup ## ways to int8 inputs side by side (none, smooth, rotate, both, per token): docs/precision.md
	$(PY) -m export w8a8 $(ARGS)
	$(PY) -m export results

sensitivity: setup ## what each group of layers costs in each format; the recipe orin-mixed is its result
	$(PY) -m quant sensitivity --checkpoint models/demo/checkpoint --board agx-orin-64gb \
		--budget-ms 54 --shapes full --image-size 252 252 --out build/sensitivity $(ARGS)

success: setup mesa build/demo-seed1/model.safetensors build/demo-without-anchor/model.safetensors ## every success rate of README and model card again, training what they compare with (2 hours)
	$(PY) -m export success --seeds build/demo-seed1 --without-anchor build/demo-without-anchor $(ARGS)
	$(PY) -m export results

recall: setup mesa ## what the policy with a memory does with it, without it, and recomputed (6 minutes)
	$(PY) -m export recall $(ARGS)
	$(PY) -m export results

mesa: ## install the simulator's software renderer, where that is possible
	@sh requirements/system.sh mesa 'libEGL\.so\.1 libEGL_mesa\.so\.0' \
		'the demo goes on with recorded episodes; for live simulation' \
		libegl1 libegl-mesa0 libgl1-mesa-dri libopengl0

libusb: ## install what the RealSense SDK needs of the system, where that is possible
	@sh requirements/system.sh libusb 'libusb-1\.0\.so\.0' \
		'tests of RealSense cameras are skipped; for them' libusb-1.0-0

sshd: ## install the server in which what goes over ssh is tested, where that is possible and starts no service
	@sh requirements/system.sh sshd bin:sshd \
		'tests over ssh are skipped; for them' service:openssh-server

chromium: ## install the headless browser in which the live page is tested, where that is possible
	@sh requirements/system.sh chromium bin:chromium-headless-shell,chromium,chromium-browser,google-chrome \
		'tests of the live page are skipped; for them' chromium-headless-shell

train-demo: setup mesa $(DATA) ## train the demo policy into build/demo-trained (40 minutes on 2 cores)
	$(PY) -m models.demo train $(ARGS)

readout-demo: setup mesa $(DATA) ## fit the leaf of the policy in build/demo-trained anew; its other weights stay (a minute)
	$(PY) -m models.demo readout $(ARGS)

build/demo-seed1/model.safetensors: $(DATA)
	$(PY) -m models.demo train --seed 1 --out $(@D)

build/demo-without-anchor/model.safetensors: $(DATA)
	$(PY) -m models.demo train --without-anchor --out $(@D)

$(DATA): | $(STAMP) mesa
	$(PY) -m models.demo collect $(COLLECT)

train-recall: setup mesa $(BLINKS) ## train the policy with a memory into build/blink-trained (45 minutes on 2 cores)
	$(PY) -m models.demo remember $(ARGS)

$(BLINKS): | $(STAMP) mesa
	$(PY) -m models.demo blinks --episodes 1000

record-demo: setup mesa ## record the demo's episodes from the simulator again
	$(PY) -m models.demo record --out $(call quoted,$(EPISODES))

device-test: setup ## judge BUNDLE by its board's budgets, here or on HOST=user@orin; page in build/device
	$(PY) -m device_tests $(call quoted,$(BUNDLE)) $(call option,--host,$(HOST)) $(ARGS)

resolve: setup ## ask the package registry whether every pin of a robot exists for both JetPacks, and keep its hash; 130 MB the first time
	$(PY) -m tests.resolve

test-aarch64: setup ## the lean wheel and BUNDLE in an emulated aarch64 user space (5 minutes the first time)
	$(PY) -m tests.aarch64 $(call quoted,$(BUNDLE)) --episode models/demo/episodes/touch-red-1.npz

virtual-board: setup board-tools ## a Debian machine under qemu that stands in for a board: made, booted, its power cut (10 minutes the first time)
	$(PY) -m tests.virtual_board $(ARGS)

virtual-flash: setup board-tools ## BUNDLE flashed to the virtual board for real: booted, hung, failed in four ways, rolled back (half an hour)
	$(PY) -m tests.virtual_board.flashed $(call quoted,$(BUNDLE)) $(ARGS)

power-cuts: setup board-tools ## the virtual board's power cut at every border of a flash and at 100 random moments (hours)
	$(PY) -m tests.virtual_board.power_cuts $(ARGS)

board-tools: ## install what makes and runs it, where that is possible
	@sh requirements/system.sh board-tools \
		'bin:debootstrap bin:qemu-system-x86_64 bin:qemu-img bin:mkfs.ext4 bin:ssh' \
		'the virtual board is skipped; for it' \
		debootstrap qemu-system-x86 qemu-utils ipxe-qemu seabios e2fsprogs openssh-client

fuzz-server: setup ## 100,000 mutated messages against a server of BUNDLE: nothing may crash, hang or keep others waiting
	$(PY) -m tests.fuzz_server $(call quoted,$(BUNDLE)) $(ARGS)

fuzz-release: setup ## BUNDLE signed and then changed in 10,000 ways: each has to be refused
	$(PY) -m tests.fuzz_release $(call quoted,$(BUNDLE)) $(ARGS)

openpi-episodes: setup mesa ## openpi's own client drives the simulator through a server of BUNDLE
	$(PY) -m tests.openpi_episodes $(call quoted,$(BUNDLE)) $(ARGS)

test-lerobot: setup build/lerobot/bin/python ## LeRobot's own reader and rerun's on what we write, its networks beside ours, in an environment of their own (750 MB)
	$(PY) -m pytest tests/runtime/test_lerobot_writer.py tests/runtime/test_rerun.py tests/models/test_smolvla_lerobot.py $(ARGS)

build/lerobot/bin/python: requirements/lerobot.txt | $(STAMP)
	$(PY) -m tests.lerobot_reader --make

test-ansible: setup build/ansible/bin/ansible-playbook ## the Ansible role against a board on loopback, in an environment of its own (60 MB)
	$(PY) -m pytest tests/flash/test_ansible.py $(ARGS)

build/ansible/bin/ansible-playbook: requirements/ansible.txt | $(STAMP)
	$(PYTHON) -m venv build/ansible
	build/ansible/bin/python -m pip --disable-pip-version-check --quiet install -r requirements/ansible.txt
	@touch $@

test-ros2: setup ## the ROS 2 robot with the real rclpy, in build/ros2 (2 minutes the first time; Python 3.11)
	$(PY) -m tests.ros2 $(ARGS)

robot-wheel: setup ## dist/anchorvla_runtime-*.whl, the part that goes on the robot
	$(PY) -m build --wheel --no-isolation --outdir dist runtime

wheelhouse: setup ## all that a board of JETPACK installs for KINDS, in WHEELHOUSE; nothing of it is run
	$(PY) -m export wheelhouse --jetpack $(JETPACK) --kinds $(KINDS) \
		--out $(call quoted,$(WHEELHOUSE)) $(ARGS)

clean: ## remove what was built, keep .venv
	rm -rf build dist

distclean: clean ## remove .venv and the tools' caches too
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
