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

# A Triton server for its tests, in an environment of its own: its Python models need NumPy below 2. Sees the working
# tree as it is. Without the packages the tests that need it say so.
prepare_triton() {
    local packages=(nvidia-pytriton==0.7.0 'numpy<2' onnxruntime 'opencv-python-headless<4.12' pycocotools tqdm)
    local folder=.venv-triton stamp=.venv-triton/.installed package
    [ "$(cat "$stamp" 2>/dev/null)" = "${packages[*]}" ] && return
    echo "installing a Triton server into $folder, for its tests (half a minute)"
    rm -rf "$folder"
    # No dependencies: those of pytriton itself are not needed to run the server that it brings.
    .venv/bin/python -m venv "$folder" &&
        "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps "${packages[@]}" || {
        echo "there is no Triton server here; its tests are left out" >&2
        rm -rf "$folder"
        return
    }
    mkdir -p "$folder/tree/wnlb"
    for package in calibration export plugins runtime; do ln -s "../../../$package" "$folder/tree/wnlb/"; done
    echo ../../../tree > "$(echo "$folder"/lib/python3.*/site-packages)/wnlb_tree.pth"
    echo "${packages[*]}" > "$stamp"
}
