#!/usr/bin/env bash
# The official openai client in an environment of its own, for the test serve_openai, which is skipped
# without it. usage: tools/openai_venv.sh [BUILD_DIR]
set -euo pipefail
cd "$(dirname "$0")/.."
dir=${1:-build}/openai-venv
python3 -m venv "$dir"
"$dir/bin/pip" install --quiet --disable-pip-version-check 'openai>=1.50,<3'
"$dir/bin/python" -c 'import openai; print("openai", openai.__version__)'
