set shell := ["bash", "-euo", "pipefail", "-c"]

# Use the installed Python; never download another.
export UV_PYTHON_DOWNLOADS := "never"

export UV := `if command -v uv >/dev/null; then echo uv; else echo python3 -m uv; fi`
python := ".venv/bin/python"

# The folders that hold a distribution, each with its pyproject.toml.
distributions := ". service/repeater_client"

# Bash code: an array of the missing clients, by the names of their Debian packages.
missing-clients := '''
    missing=()
    command -v node >/dev/null || missing+=(nodejs)
    command -v npm >/dev/null || missing+=(npm)
    command -v chromium chromium-browser google-chrome >/dev/null || missing+=(chromium)
    # The clock of `just drill`.
    compgen -G '/usr/lib*/*/faketime/libfaketimeMT.so.1' >/dev/null || missing+=(libfaketime)
    # Beside the PostgreSQL 18 of a wheel; other versions of Debian have other ones.
    [[ -x /usr/lib/postgresql/15/bin/postgres ]] || ! grep -q bookworm /etc/os-release || missing+=(postgresql-15)
    PATH=$PATH:/usr/sbin command -v pgbouncer >/dev/null || missing+=(pgbouncer)
'''

# Bash code, to run by the array `as`: Debian starts the service of each package that it installs,
# unless this file forbids it.
without-services := '''
    policy=/usr/sbin/policy-rc.d
    if [[ ! -e $policy ]]; then
        trap '"${as[@]}" rm -f "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' | "${as[@]}" tee "$policy" >/dev/null
        "${as[@]}" chmod 755 "$policy"
    fi
'''

[private]
default:
    @{{ just_executable() }} --justfile {{ quote(justfile()) }} --list --unsorted

# Run the server for development, e.g. `just serve --help`
[positional-arguments]
serve *ARGS: (_sync "requirements.txt")
    @exec {{ python }} -m repeater serve --dev "$@"

# Run the demo
[positional-arguments]
demo *ARGS: (_sync "requirements-demo.txt")
    @exec {{ python }} -m benchmarks.demo "$@"

# Run the tests, e.g. `just test -k broadcast`; `-n 0` runs them in one process
[positional-arguments]
test *ARGS: (_sync "requirements-dev.txt") _missing-clients
    @exec {{ python }} -m pytest -n auto "$@"

# Send strangers' bytes to a running server for some minutes, e.g. `just fuzz --seconds 60 --seed 7`
[positional-arguments]
fuzz *ARGS: (_sync "requirements-dev.txt")
    @exec {{ python }} -m tests.fuzz "$@"

# Run all Autobahn cases against an echo on the native transport, e.g. `just autobahn '12.*' 9.1.1`
[positional-arguments]
autobahn *CASES: (_sync "requirements-dev.txt")
    @exec {{ python }} -m tests.autobahn "$@"

# Make faults beside a running server, and check that no event is lost in silence; `just drill --list`
[positional-arguments]
drill *ARGS: (_sync "requirements-dev.txt")
    @exec {{ python }} -m tests.drill "$@"

# Run the tests on each installed Python from 3.11 to 3.14, e.g. `just test-pythons -k broadcast`
[positional-arguments]
test-pythons *ARGS: (_sync "requirements-dev.txt")
    @exec {{ python }} -m tests.pythons "$@"

# Build every distribution into dist/, a wheel and an sdist each
wheels: _venv
    #!/usr/bin/env bash
    set -euo pipefail
    rm -rf dist
    for folder in {{ distributions }}; do
        {{ UV }} build --quiet --python {{ python }} --out-dir dist \
            --require-hashes --build-constraints requirements-build.txt "$folder"
    done
    ls -l dist

# Install the distributions of `just wheels` into fresh environments, and test them
[positional-arguments]
test-wheel *ARGS: (_sync "requirements-dev.txt") wheels
    @exec {{ python }} -m pytest tests/wheel "$@"

# Install what the tests drive: Node, npm, Chromium, libfaketime, PostgreSQL by apt, what tests/sdk and tests/suites need by npm, pip, Go and Maven
clients:
    #!/usr/bin/env bash
    set -uo pipefail
    {{ missing-clients }}
    apt() {
        "${as[@]}" env DEBIAN_FRONTEND=noninteractive \
            timeout 300 apt-get -qq -o DPkg::Lock::Timeout=120 "$@" >/dev/null
    }
    why="" as=()
    if (( ${#missing[@]} == 0 )); then
        : # nothing is missing
    elif ! command -v apt-get >/dev/null; then
        why="no apt-get here"
    # Never use sudo on a developer's machine; a CI machine may allow it without a password.
    elif (( EUID != 0 )) && ! { [[ -n "${CI:-}" ]] && sudo -n true 2>/dev/null; }; then
        why="that takes root"
    else
        (( EUID == 0 )) || as=(sudo -n)
        echo "installing ${missing[*]}" >&2
        {{ without-services }}
        apt update
        apt install -y --no-install-recommends "${missing[@]}" || why="apt-get failed"
    fi
    # Not an error: tests that need a missing client are skipped.
    [[ -z $why ]] || echo "not installed ($why), on Debian: apt-get install ${missing[*]}" >&2

    # Do what installs the packages that a file pins, once for each state of the file.
    provide() {
        local pins=$1 folder=$2 what=$3
        shift 3
        if cmp -s "$pins" "$folder/.installed"; then return; fi
        rm -rf "$folder"
        if "$@"; then
            cp "$pins" "$folder/.installed"
        else
            echo "not installed: $what ($* failed)" >&2
        fi
    }
    # The driver is compiled as well: the first time takes long, and Go keeps what it has compiled.
    modules() {
        timeout 120 go mod vendor && timeout 300 go build -mod=vendor -buildvcs=false -o /dev/null .
    }
    cd tests/sdk
    if command -v npm >/dev/null; then
        provide package.json node_modules "the JavaScript SDK" \
            timeout 120 npm install --ignore-scripts --no-audit --no-fund --loglevel=error
    fi
    # The sdists of two clients, for the tests that are in them. pip builds them to learn their names.
    sdists() {
        mkdir ../../.suites
        awk '/^[a-z]/ { on = /^(cent|centrifuge-python)==/ } on' ../../requirements-dev.txt \
            >../../.suites/pins.txt
        timeout 120 python3 -m pip download -q --disable-pip-version-check --no-deps \
            --no-binary cent,centrifuge-python --require-hashes \
            -r ../../.suites/pins.txt -d ../../.suites || return
        for archive in ../../.suites/*.tar.gz; do
            tar -xzf "$archive" -C ../../.suites || return
        done
    }
    provide ../../requirements-dev.txt ../../.suites "the suites of tests/suites" sdists
    # Go and Java are driven where they are installed.
    if command -v mvn >/dev/null; then
        provide java/pom.xml java/libraries "the Java SDK" \
            timeout 180 mvn -B -q -Dstyle.color=never -f java/pom.xml dependency:copy-dependencies
    fi
    if command -v go >/dev/null; then
        cd go
        GOTOOLCHAIN=local provide go.mod vendor "the Go SDK" modules
    fi

# Lint, check the formatting, check the types, look for merge markers
check: (_sync "requirements-dev.txt") _markers
    {{ python }} -m ruff check
    {{ python }} -m ruff format --check
    {{ python }} -m mypy

# Format the code and apply the safe lint fixes
format: (_sync "requirements-dev.txt")
    {{ python }} -m ruff check --fix-only
    {{ python }} -m ruff format

# Renew what docs/ says of the settings, and of the differences from Centrifugo
docs: (_sync "requirements.txt")
    {{ python }} -m repeater config document docs/configuration.md
    {{ python }} -m tests.differential.document docs/protocol.md

# Compare Repeater with Centrifugo in conversations from seeds, e.g. `just differential --seed 1000 --conversations 500`
[positional-arguments]
differential *ARGS: (_sync "requirements-dev.txt")
    @exec {{ python }} -m tests.differential "$@"

# Compile service/repeater/client.proto into client.binpb beside it
protobuf: (_sync "requirements-dev.txt")
    {{ python }} -m grpc_tools.protoc --proto_path=service/repeater \
        --descriptor_set_out=service/repeater/client.binpb client.proto

# Run the core benchmarks, a few minutes, e.g. `just bench --json run.json` or `just bench --help`
[positional-arguments]
bench *ARGS: (_sync "requirements-dev.txt")
    @exec {{ python }} -m benchmarks run "$@"

# Run every benchmark, e.g. `just bench-full --json run.json`
[positional-arguments]
bench-full *ARGS: (_sync "requirements-dev.txt")
    @exec {{ python }} -m benchmarks run --full "$@"

# Flood servers, and measure what honest subscribers notice, e.g. `just bench-hostile --flood pings`
[positional-arguments]
bench-hostile *ARGS: (_sync "requirements-dev.txt")
    @exec {{ python }} -m benchmarks hostile "$@"

# Compare durable history, Valkey and workers with one process and its memory, e.g. `just bench-engines --only durable`
[positional-arguments]
bench-engines *ARGS: (_sync "requirements-dev.txt")
    @exec {{ python }} -m benchmarks engines "$@"

# Compare Protobuf clients with JSON clients: deliveries, idle memory, whole commands; five minutes
[positional-arguments]
bench-protobuf *ARGS: (_sync "requirements-dev.txt")
    @exec {{ python }} -m benchmarks protobuf "$@"

# Measure what a message of the engine's bus costs a node, and the repair of many channels
[positional-arguments]
bench-bus *ARGS: (_sync "requirements-dev.txt")
    @exec {{ python }} -m benchmarks.bus "$@"

# Measure what publishing inside a transaction costs, and how soon it arrives; some 6 minutes
[positional-arguments]
bench-outbox *ARGS: (_sync "requirements-dev.txt")
    @exec {{ python }} -m benchmarks.outbox "$@"

# Measure what compression costs and saves, e.g. `just bench-deflate --only cpu`
[positional-arguments]
bench-deflate *ARGS: (_sync "requirements-dev.txt")
    @exec {{ python }} -m benchmarks.deflate "$@"

# Write docs/benchmarks.md with its plots, and docs/capacity.md, from a full run
bench-docs RUN: (_sync "requirements-dev.txt")
    {{ python }} -m benchmarks document {{ quote(RUN) }} docs/benchmarks.md
    {{ python }} -m benchmarks capacity {{ quote(RUN) }} >docs/capacity.md

# Write docs/engines-measured.md from a run of `just bench-engines`
bench-engines-docs RUN: (_sync "requirements-dev.txt")
    {{ python }} -m benchmarks document {{ quote(RUN) }} docs/engines-measured.md

# Write docs/protobuf-measured.md from a run of `just bench-protobuf`
bench-protobuf-docs RUN: (_sync "requirements-dev.txt")
    {{ python }} -m benchmarks document {{ quote(RUN) }} docs/protobuf-measured.md

# Tell how many machines an audience needs, e.g. `just bench-capacity docs/benchmarks/run.json`
[positional-arguments]
bench-capacity *ARGS: (_sync "requirements-dev.txt")
    @exec {{ python }} -m benchmarks capacity "$@"

# Compare two runs, and tell changes from noise, e.g. `just bench-compare old.json new.json`
[positional-arguments]
bench-compare *ARGS: (_sync "requirements-dev.txt")
    @exec {{ python }} -m benchmarks compare "$@"

# Count instructions and system calls per delivery, and compare; `--update` stores the new counts
[positional-arguments]
bench-gate *ARGS: (_sync "requirements-dev.txt")
    @exec {{ python }} -m benchmarks.gate "$@"

# Install the servers that the benchmarks compare Repeater with, from PyPI and Debian
bench-peers: (_sync "requirements-peers.txt") && _peers-debian

# Write requirements*.txt from pyproject.toml; `just lock --upgrade` takes newer versions
[positional-arguments]
lock *ARGS:
    #!/usr/bin/env bash
    set -euo pipefail
    compile() {
        {{ UV }} pip compile --quiet --universal --python-version 3.11 --generate-hashes \
            --no-header --no-emit-index-url --no-emit-find-links "$@"
    }
    compile --group build -o requirements-build.txt "$@"
    # The comments application is an extra; `just serve` and the demo run it.
    compile pyproject.toml --extra comments -o requirements.txt "$@"
    # Each set keeps the pins of the sets before it, so that all sets fit into one .venv.
    compile pyproject.toml --extra comments --group dev -c requirements.txt -o requirements-dev.txt "$@"
    # What deploy/cluster/Dockerfile installs.
    compile pyproject.toml --extra comments --extra postgres --extra valkey -c requirements-dev.txt -o requirements-cluster.txt "$@"
    compile pyproject.toml --extra comments --group demo -c requirements-dev.txt -o requirements-demo.txt "$@"
    compile pyproject.toml --extra comments --group peers -c requirements-dev.txt -o requirements-peers.txt "$@"

# Fail if a file has the markers that git writes where a merge failed
_markers:
    #!/usr/bin/env bash
    set -uo pipefail
    [[ -e .git ]] || exit 0 # an unpacked sdist
    # Status 1 means that git found nothing; a higher status means that git failed.
    git grep -nIE '^(<<<<<<<|\|\|\|\|\|\|\||>>>>>>>)( |$)|^=======$'
    (( $? == 1 )) || { echo "merge markers, or git does not work here" >&2; exit 1; }

# Name the clients that `just clients` would install; tests that need them are skipped
_missing-clients:
    #!/usr/bin/env bash
    set -euo pipefail
    {{ missing-clients }}
    cd tests/sdk
    cmp -s package.json node_modules/.installed || missing+=("the JavaScript SDK")
    if command -v go >/dev/null; then cmp -s go/go.mod go/vendor/.installed || missing+=("the Go SDK"); fi
    if command -v mvn >/dev/null; then cmp -s java/pom.xml java/libraries/.installed || missing+=("the Java SDK"); fi
    (( ${#missing[@]} == 0 )) && exit 0
    printf -v list ', %s' "${missing[@]}"
    echo "missing: ${list:2}; \`just clients\` installs them, and the tests skip what needs them" >&2

# Install the peers of the benchmarks that come from Debian, and keep their services stopped
_peers-debian:
    #!/usr/bin/env bash
    set -uo pipefail
    PATH=$PATH:/usr/sbin:/sbin
    missing=() as=()
    command -v nginx >/dev/null || missing+=(nginx-light)
    compgen -G '/usr/lib*/nginx/modules/ngx_nchan_module.so' >/dev/null || missing+=(libnginx-mod-nchan)
    ldconfig -p | grep -q 'libuv\.so\.1 ' || missing+=(libuv1)
    if (( ${#missing[@]} == 0 )); then exit 0; fi
    give_up() {
        echo "not installed: ${missing[*]} ($1); the benchmarks skip what needs them" >&2
        exit 1
    }
    command -v apt-get >/dev/null || give_up "no apt-get here"
    if (( EUID != 0 )); then
        command -v sudo >/dev/null && sudo -v || give_up "that takes root or sudo"
        as=(sudo)
    fi
    echo "installing ${missing[*]}" >&2
    {{ without-services }}
    apt() {
        timeout --foreground 300 "${as[@]}" env DEBIAN_FRONTEND=noninteractive \
            apt-get -qq -o DPkg::Lock::Timeout=120 "$@" >/dev/null
    }
    apt update && apt install -y --no-install-recommends "${missing[@]}" || give_up "apt-get failed"
    if [[ " ${missing[*]} " == *" nginx-light "* ]] && command -v systemctl >/dev/null; then
        "${as[@]}" systemctl disable --quiet nginx || true
    fi

# Make .venv if it does not exist, or if its Python was removed
_venv:
    @{{ python }} -c "" 2>/dev/null || {{ UV }} venv --quiet --clear --python "$(command -v python3)" .venv

# Install one requirements file and the project into .venv, once for each state of the pins
_sync FILE: _venv
    #!/usr/bin/env bash
    set -euo pipefail
    # The stamp files of all sets are valid for one state of the pins, which is in .venv/.pins.
    pins=$(pwd; cat pyproject.toml requirements*.txt)
    if [[ ! -f .venv/.pins || "$pins" != "$(<.venv/.pins)" ]]; then
        rm -f .venv/.synced-*
        printf '%s\n' "$pins" >.venv/.pins
    fi
    if [[ ! -f .venv/.synced-{{ FILE }} ]]; then
        pip() { {{ UV }} pip "$1" --quiet --python {{ python }} "${@:2}"; }
        # The distribution's old name: an old installation would own the same script file.
        pip uninstall repeater 2>/dev/null
        pip install --require-hashes -r {{ FILE }}
        pip install --no-deps --build-constraints requirements-build.txt -e .
        touch .venv/.synced-{{ FILE }}
    fi
