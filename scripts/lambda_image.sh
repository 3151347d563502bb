#!/usr/bin/env bash
# Provides the image in which the SAM CLI runs functions. Where Lambda's own can't be pulled, it builds a look-alike:
# Debian with this project's Python where Lambda has its own, its runtime client and boto3. That takes root and debootstrap.
# The engine keeps the image, so that this is done once. It prints where the image came from: kept, pulled or built.
set -euo pipefail
cd "$(dirname "$0")/.."

image=public.ecr.aws/lambda/python:3.13
architecture=$([ "$(uname -m)" = aarch64 ] && echo arm64 || echo x86_64)

if docker image inspect "$image-$architecture" &>/dev/null; then
  echo kept
  exit
fi
if docker pull --quiet "$image-$architecture" &>/dev/null; then
  docker tag "$image-$architecture" "$image"
  echo pulled
  exit
fi

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
# Python's own libraries, as it is linked against on this Debian.
libraries=libssl3,libffi8,libsqlite3-0,libbz2-1.0,liblzma5,libreadline8,libncursesw6,ca-certificates
debootstrap --variant=minbase --include="$libraries" bookworm "$root" >&2
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/*

prefix=$(.venv/bin/python -c 'import sys; print(sys.base_prefix)')
mkdir -p "$root"/var/lang/{bin,lib} "$root"/var/runtime "$root"/var/task "$root"/opt
cp "$prefix/bin/python3.13" "$root/var/lang/bin/"
# Some are built without a library of their own.
find "$prefix/lib" -maxdepth 1 -name 'libpython3.13.so*' -exec cp -P -t "$root/var/lang/lib/" {} +
tar -C "$prefix/lib" --exclude='*.a' --exclude=python3.13/test --exclude=site-packages -c python3.13 | tar -C "$root/var/lang/lib" -x

.tools/uv/bin/uv export --quiet --frozen --no-hashes --only-group dev |
  .tools/uv/bin/uv pip install --quiet --python .venv/bin/python --target "$root/var/runtime" --constraint - awslambdaric boto3
cat > "$root/var/runtime/bootstrap" <<'BOOTSTRAP'
#!/bin/sh
export PYTHONPATH=/var/task:/opt/python:/var/runtime
exec /var/lang/bin/python3.13 -m awslambdaric "$_HANDLER"
BOOTSTRAP
chmod +x "$root/var/runtime/bootstrap"

tar -C "$root" -c . | docker import \
  --change 'WORKDIR /var/task' \
  --change 'ENV PATH=/var/lang/bin:/usr/local/bin:/usr/bin:/bin LD_LIBRARY_PATH=/var/lang/lib LANG=C.UTF-8' \
  - "$image" >/dev/null
docker tag "$image" "$image-$architecture"
echo built
