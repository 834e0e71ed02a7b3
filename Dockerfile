# docker build -t wfimagevae . && docker run --gpus all --shm-size 8g -v "$PWD/out:/out" wfimagevae
# runs the quick start; after the image's name `wfimagevae train --help` and the like. The rest of
# this repository is in /app; results written to /out stay.
FROM python:3.12-slim

# make is what the quick start is called by; a compiler is what torch.compile needs.
RUN apt-get update && apt-get install -y --no-install-recommends make g++ && rm -rf /var/lib/apt/lists/*
ENV PIP_NO_CACHE_DIR=1
WORKDIR /app
COPY . .
RUN make install
ENV PATH="/app/.venv/bin:$PATH"
CMD ["sh", "-c", "make quickstart && mkdir -p /out && cp -r quickstart /out/"]
