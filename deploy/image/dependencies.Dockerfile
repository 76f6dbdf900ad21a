# What takes long to build and to push, and changes with requirements.txt only; `lib` is made by pip outside.
ARG BASE_IMAGE
FROM ${BASE_IMAGE}
COPY lib /opt/driftloop/lib
