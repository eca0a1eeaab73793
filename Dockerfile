# One image for every service; compose.yaml says which command a container runs.
FROM python:3.13-slim AS build
WORKDIR /src
RUN python -m venv /venv
COPY requirements/server.txt requirements/server.txt
RUN /venv/bin/pip install --no-cache-dir --no-deps --require-hashes -r requirements/server.txt
COPY . .
RUN /venv/bin/pip install --no-cache-dir --no-deps --no-build-isolation .

FROM python:3.13-slim
RUN useradd --system --create-home --uid 10001 bus
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH
USER bus
EXPOSE 8420
CMD ["mcp-bus", "--help"]
