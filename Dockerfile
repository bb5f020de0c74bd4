# One image for CPUs and NVIDIA GPUs: torch's wheels bring CUDA along, the driver comes from the host.
#
#   docker build -t avpretrain .
#   docker run --rm avpretrain --help
#   docker run --rm --gpus all --shm-size 8g -v DATA:/data -v RUNS:/runs avpretrain \
#       train small_diffmavil --data /data --output-dir /runs/small
#
# Loader processes pass batches through shared memory, of which a container gets 64 MB unless --shm-size says otherwise.
FROM python:3.12-slim

# Triton builds its launchers with a C compiler when blocks are compiled; PyAV, decord and soundfile bring their libraries.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*

COPY . /src
RUN pip install --no-cache-dir --constraint /src/constraints.txt /src && rm -rf /src

WORKDIR /data
ENTRYPOINT ["avpretrain"]
