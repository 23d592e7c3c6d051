# Two commands do all that a newcomer needs: `make up` and `make test`. Each sets up what it needs, and is safe to repeat.
PYTHON ?= python3
PORT ?= 4566
# CPU builds of torch, a tenth of the size; empty takes whatever pip finds, such as a build for your GPU.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
PIP = bin/python -m pip --disable-pip-version-check $(if $(MAKE_TERMOUT),,--quiet) install

# The training image (job) is several gigabytes with CUDA.
export IMAGES ?= predict batch monitor train job

.PHONY: up down logs test check base images test-images bench-train bench-drift bench-serve bench-load bench-explain bench-sizing lock openapi clean

up: .venv/ready .venv-cloud/ready
	@.venv/bin/retrue up --port $(PORT)

down:
	@.venv/bin/retrue down

logs:
	@.venv/bin/retrue logs

# The local stack is the longest group, and is reached early in the order of the files.
test: .venv/ready .venv-cloud/ready
	.venv/bin/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

check: .venv/ready .venv-sam/ready .venv-checkov/ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	for name in predict batch monitor train; do (cd functions/$$name && ../../.venv/bin/mypy --config-file ../../pyproject.toml *.py) || exit 1; done
	.venv/bin/lint-imports
	.venv/bin/python docs/openapi.py --check
	.venv-sam/bin/cfn-lint template.yaml infra/training.yaml
	.venv-sam/bin/statelint --yaml --ignore=URI infra/retrain.asl.yaml infra/scoring.asl.yaml
	.venv-sam/bin/python infra/definition.py | .venv-sam/bin/cfn-lint
	SAM_CLI_TELEMETRY=0 AWS_DEFAULT_REGION=us-east-1 .venv-sam/bin/sam validate --lint
	.venv-checkov/bin/checkov --framework cloudformation --file template.yaml infra/training.yaml --skip-download --compact --quiet

# With whatever engine there is; PYTHON_VERSION and BASE_IMAGE are the Dockerfiles' arguments.
base:
	$(PYTHON) infra/images.py base

images:
	$(PYTHON) infra/images.py build $(IMAGES)

test-images: .venv/ready .venv-cloud/ready .venv-sam/ready .venv-images/ready
	.venv-images/bin/hadolint --failure-threshold warning functions/*/Dockerfile*
	.venv/bin/python -m pytest tests/images
	@cat dist/images/report.md

bench-train: .venv/ready .venv-bench/ready
	.venv/bin/python benchmarks/train.py

# Trains a small model and reads 20,000 texts once, then keeps both under .retrue.
bench-drift: .venv/ready .venv-bench-evidently/ready .venv-bench-nannyml/ready
	OMP_NUM_THREADS=1 .venv/bin/python benchmarks/layer.py
	OMP_NUM_THREADS=1 .venv/bin/python benchmarks/drift.py

# bench-load and bench-explain use the model of bench-drift, which they train where it is not there yet; bench-load and
# bench-sizing the image that `make base images IMAGES=predict` builds. 100,000 requests take about six minutes.
bench-load: .venv/ready
	OMP_NUM_THREADS=1 .venv/bin/python benchmarks/load.py

bench-sizing: .venv/ready .venv-cloud/ready
	OMP_NUM_THREADS=1 .venv/bin/python benchmarks/sizing.py

bench-explain: .venv/ready
	OMP_NUM_THREADS=1 .venv/bin/python benchmarks/explain.py

# Makes models of DistilBERT's full size for every peer, and trains a small one, once, and keeps them under .retrue.
bench-serve: .venv/ready .venv-bench-optimum/ready .venv-bench-openvino/ready .venv-bench-ctranslate2/ready
	.venv/bin/python benchmarks/serve.py

openapi: .venv/ready
	.venv/bin/python docs/openapi.py

lock:
	./locks/relock.sh

clean: down
	rm -rf .venv .venv-cloud .venv-sam .venv-checkov .venv-images .venv-bench .venv-bench-evidently .venv-bench-nannyml \
		.venv-bench-optimum .venv-bench-openvino .venv-bench-ctranslate2 .retrue

# Hash-locked; torch apart, since the registry's own build brings gigabytes of CUDA packages. A CPU build finds all that
# it needs installed already; a GPU build fetches its own.
.venv/ready: locks/dev.txt pyproject.toml
	@echo "installing the project's packages into .venv (about 2 GB, once)"
	@.venv/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@.venv/$(PIP) --require-hashes --no-deps -r locks/dev.txt
	@.venv/bin/python -c "import torch; assert torch.__version__.startswith('2.13.0')" 2>/dev/null \
		|| .venv/$(PIP) $(if $(TORCH_INDEX),--retries 1 --extra-index-url $(TORCH_INDEX)) torch==2.13.0
	@.venv/$(PIP) --no-deps --no-build-isolation -e .
	@.venv/bin/python -m pip check
	@touch $@

.venv-checkov/ready: locks/checkov.txt
	@echo "installing the template's security checker into .venv-checkov"
	@.venv-checkov/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv-checkov
	@.venv-checkov/$(PIP) --require-hashes --no-deps -r locks/checkov.txt
	@touch $@

.venv-cloud/ready: locks/cloud.txt
	@echo "installing the local cloud into .venv-cloud"
	@.venv-cloud/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv-cloud
	@.venv-cloud/$(PIP) --require-hashes --no-deps -r locks/cloud.txt
	@touch $@

# Peers that share the project's own torch, and transformers where they have none of their own.
.venv-bench/ready .venv-bench-optimum/ready .venv-bench-ctranslate2/ready: .venv-%/ready: .venv/ready locks/%.txt
	@echo "installing what the benchmarks' peers need into .venv-$*"
	@.venv-$*/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv-$*
	@.venv-$*/bin/python -c "import sysconfig, pathlib; here = pathlib.Path(sysconfig.get_path('purelib')); \
		(here / 'project.pth').write_text(str(here).replace('.venv-$*', '.venv') + '\n' + '$(CURDIR)/src\n')"
	@.venv-$*/$(PIP) --require-hashes --no-deps -r locks/$*.txt
	@touch $@

# Peers whose packages and ours do not agree.
.venv-bench-%/ready: locks/bench-%.txt
	@echo "installing $* into .venv-bench-$*"
	@.venv-bench-$*/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv-bench-$*
	@.venv-bench-$*/$(PIP) --require-hashes --no-deps -r locks/bench-$*.txt
	@touch $@

.venv-sam/ready: locks/sam.txt
	@echo "installing the template's checkers into .venv-sam"
	@.venv-sam/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv-sam
	@.venv-sam/$(PIP) --require-hashes --no-deps -r locks/sam.txt
	@touch $@

.venv-images/ready: locks/images.txt
	@echo "installing what looks at the images into .venv-images"
	@.venv-images/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv-images
	@.venv-images/$(PIP) --require-hashes --no-deps -r locks/images.txt
	@touch $@
