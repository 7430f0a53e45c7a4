#!/usr/bin/env bash
# Flink 1.19 from PyPI and Beam's job server for it from Maven Central, into a folder: get.sh FOLDER PYTHON. Needs Java and Maven.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
for program in java mvn; do
  command -v "$program" > /dev/null || { echo "Flink needs $program, which is not in PATH" >&2; exit 1; }
done
mkdir -p "$1" && cd "$1"
version=1.19.3
if [ ! -e home/.whole ]; then
  rm -rf home parts && mkdir -p home parts
  "$2" -m pip download -q --no-deps --no-binary :all: -d parts "apache-flink-libraries==$version"
  "$2" -m pip download -q --no-deps --only-binary :all: -d parts "apache-flink==$version"
  tar xzf parts/apache-flink-libraries-*.tar.gz -C parts
  "$2" -m zipfile -e parts/apache_flink-*.whl parts/wheel
  cp -r parts/wheel/pyflink/bin parts/wheel/pyflink/conf home/
  cp -r parts/apache-flink-libraries-*/deps/{lib,plugins,opt} home/  # not a link: its scripts look for files in lib
  cp parts/apache-flink-libraries-*/deps/bin/*.jar home/bin/
  chmod +x home/bin/*
  rm -rf parts && touch home/.whole
fi
if [ ! -e flink-job-server.jar ]; then
  mkdir -p build && cp "$here/pom.xml" build/
  (cd build && mvn -B -q package)
  mv build/target/flink-job-server.jar . && rm -rf build
fi
