# Sourced by the other scripts: puts the environment in .venv into place. usage: prepare_environment EXTRAS

prepare_environment() {
    cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
    local python=${PYTHON:-python3} stamp=.venv/.installed-$1 wanted
    wanted=$(cat pyproject.toml <(find calibration export plugins runtime -type f ! -name '*.pyc' | sort) | sha256sum)
    if [ ! -x .venv/bin/python ]; then
        "$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || {
            echo "$("$python" --version) found; expected Python 3.10 to 3.13: set PYTHON=/path/to/python" >&2
            exit 2
        }
        echo "making .venv"
        "$python" -m venv .venv
    fi
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        echo "installing wnlb-deploy[$1] into .venv (a few minutes the first time)"
        # strict: mypy and editors see real files under the name wnlb
        .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[$1]" \
            --config-settings editable_mode=strict || exit 1
        echo "$wanted" > "$stamp"
    fi
    PATH="$PWD/.venv/bin:$PATH"
}
