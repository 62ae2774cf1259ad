# The package and nothing else; torch's wheel brings its own CUDA.
#
#   docker build -t oblique-clip .
#   docker run --rm oblique-clip bench --plan --ranks 64
#   docker run --rm --gpus all --ipc host -v "$PWD":/work oblique-clip train --out runs/first
#
# Many ranks on one machine (`--ipc host` is for NCCL and for workers that decode, which share memory):
#   docker run --rm --gpus all --ipc host -v "$PWD":/work --entrypoint torchrun oblique-clip \
#     --nproc-per-node 8 -m oblique_clip train --batch-size 4096 --out runs/eight
FROM python:3.12-slim

COPY pyproject.toml README.md LICENSE NOTICE CHANGELOG.md /source/
COPY oblique_clip /source/oblique_clip
RUN pip install --no-cache-dir /source && rm -r /source

# Nothing in a run needs more rights than these.
RUN useradd --create-home user
USER user
WORKDIR /work
ENTRYPOINT ["oblique-clip"]
CMD ["--help"]
