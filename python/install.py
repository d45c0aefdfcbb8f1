"""Installs a requirements file into the environment that runs this script; PyTorch without its GPU libraries.

What and why: on x86-64 Linux the package index carries only the CUDA build of PyTorch. Its own wheel is 0.5 GB, but it
demands 4 GB of cuBLAS, cuDNN, NCCL and others, which a run on the CPU never calls. They are named by the dynamic
linker all the same: without a file of each name, `import torch` fails.

How: the wheel is installed without its dependencies; the two small libraries that are called even without a GPU
(cudart, cupti: 55 MB) are real; for each other one the C compiler builds a stand-in of a few kilobytes, which defines
every symbol that PyTorch's libraries expect of it. Which symbols those are is read from the libraries themselves, so
that nothing here depends on PyTorch's version. Calling a stand-in ends the process at once.

Invariant: when this script succeeds, `import torch` works and a gradient can be computed. If the light way fails for
whatever reason (no compiler, another processor, a changed wheel), PyTorch is installed in full and the reason printed.

A line `--no-deps NAME==VERSION` is installed last and without what it asks for: packages that ask for PyTorch would have pip
fetch all of it; what else they need stands in lines of its own.

Usage: PYTHON install.py REQUIREMENTS
"""

import importlib.metadata
import pathlib
import platform
import re
import subprocess
import sys
import tempfile

# Libraries that PyTorch calls also where there is no GPU: the runtime is asked whether there is one, and the profiler
# registers itself with cupti.
REAL = {"cudart": "nvidia-cuda-runtime", "cupti": "nvidia-cuda-cupti"}

# Symbols that carry no version are told apart by their prefix.
UNVERSIONED = {"nccl": "libnccl", "cusparseLt": "libcusparseLt", "cuFile": "libcufile", "nvshmem": "libnvshmem_host"}

ALONE = "--no-deps "

PROBE = """
import torch
x = torch.ones(2, 2, requires_grad=True)
(x @ x).sum().backward()
assert x.grad.sum().item() == 16.0
import torch.distributed
print("torch", torch.__version__, "works; CUDA:", torch.cuda.is_available())
"""


def run(*command, **keywords):
    return subprocess.run(command, check=True, text=True, **keywords)


def pip(*arguments):
    # Without the warning: pip would list the GPU libraries that are left out on purpose.
    quiet = ("--quiet", "--disable-pip-version-check", "--no-warn-conflicts")
    run(sys.executable, "-m", "pip", "install", *quiet, *arguments)


def readelf(option, library):
    return run("readelf", "-W", option, str(library), stdout=subprocess.PIPE).stdout


def needed(library):
    return set(re.findall(r"\(NEEDED\).*\[(.*)\]", readelf("-d", library)))


def undefined(library):
    """(symbol, version or "") of everything that `library` expects of others."""
    for line in readelf("--dyn-syms", library).splitlines():
        columns = line.split()
        if len(columns) >= 8 and columns[6] == "UND":
            symbol, _, version = columns[7].partition("@")
            yield symbol, version.lstrip("@")


def version_owners(library):
    """{version: file} of the symbol versions that `library` expects, and of which file."""
    owners, current = {}, None
    for line in readelf("-V", library).splitlines():
        if found := re.search(r"File: (\S+)", line):
            current = found.group(1)
        if found := re.search(r"Name: (\S+)", line):
            owners[found.group(1)] = current
    return owners


def expected_symbols(libraries, missing):
    """{file: {symbol: version}} of what `libraries` expect of the `missing` files."""
    wanted = {name: {} for name in missing}
    for library in libraries:
        owners = version_owners(library)
        for symbol, version in undefined(library):
            if version:
                owner = owners.get(version)
            else:
                prefix = next((p for p in UNVERSIONED if symbol.startswith(p)), None)
                owner = next((n for n in missing if prefix and n.startswith(UNVERSIONED[prefix] + ".")), None)
            if owner in wanted:
                wanted[owner][symbol] = version
    return wanted


def build_stand_in(folder, name, symbols):
    with tempfile.TemporaryDirectory() as scratch:
        source, script = pathlib.Path(scratch, "stand_in.c"), pathlib.Path(scratch, "versions")
        source.write_text("".join(f"void {symbol}(void) {{ __builtin_trap(); }}\n" for symbol in sorted(symbols)))
        versions = {}
        for symbol, version in symbols.items():
            versions.setdefault(version, []).append(symbol)
        script.write_text("".join(f"{v} {{ global: {'; '.join(s)}; }};\n" for v, s in sorted(versions.items()) if v))
        command = ["cc", "-shared", "-fPIC", "-w", "-o", str(folder / name), str(source), f"-Wl,-soname,{name}"]
        if script.read_text():
            command.append(f"-Wl,--version-script={script}")
        run(*command)


def install_light(requirement):
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise RuntimeError("only x86-64 Linux needs it")
    pip("--no-deps", requirement)
    distribution = importlib.metadata.distribution("torch")
    pure, real = [], []
    cuda = next((m.group(1) for r in distribution.requires if (m := re.match(r"cuda-toolkit.*==(\d+\.\d+)", r))), None)
    for line in distribution.requires:
        name = re.match(r"[\w.-]+", line).group()
        if "extra ==" not in line and not re.match(r"nvidia|cuda|triton", name):
            pure.append(line.split(";")[0].strip())
    for package in REAL.values():
        real.append(f"{package}=={cuda}.*" if cuda else package)
    pip(*pure)
    pip("--no-deps", *real)

    site = pathlib.Path(distribution.locate_file(""))
    folder = site / "torch" / "lib"
    libraries = sorted(folder.glob("libtorch*.so")) + sorted(folder.glob("libc10*.so"))
    present = {path.name for path in site.glob("nvidia/**/*.so*")} | {path.name for path in folder.iterdir()}
    system = re.compile(r"(libc|libm|libdl|librt|libpthread|libgcc_s|libstdc\+\+|ld-linux.*|libcuda)\.so")
    missing = {n for library in libraries for n in needed(library) if n not in present and not system.match(n)}
    for name, symbols in sorted(expected_symbols(libraries, missing).items()):
        build_stand_in(folder, name, symbols)
    print(f"torch: {len(missing)} GPU libraries replaced by stand-ins", flush=True)


def requirements(path):
    """The lines of a requirements file, comments left out and `-r FILE` followed."""
    for line in path.read_text().splitlines():
        line = line.partition("#")[0].strip()
        if line.startswith("-r "):
            yield from requirements(path.parent / line[3:].strip())
        elif line:
            yield line


def install_torch(requirement):
    try:
        install_light(requirement)
        run(sys.executable, "-c", PROBE)
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        print(f"torch: the light installation failed ({error}); installing it in full", flush=True)
        pip("--force-reinstall", "--no-deps", requirement)
        pip(requirement)
        run(sys.executable, "-c", PROBE)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__.rsplit("\n\n", 1)[-1].strip())
    wanted = list(requirements(pathlib.Path(sys.argv[1])))
    alone = [line for line in wanted if line.startswith(ALONE)]
    torch = [line for line in wanted if re.match(r"torch\b", line)]
    # The others first: PyTorch's wheel asks for numpy without saying so. Together with PyTorch pip would fetch what the
    # light way leaves out.
    pip(*(line for line in wanted if line not in torch + alone))
    for requirement in torch:
        install_torch(requirement)
    for line in alone:
        pip("--no-deps", line.removeprefix(ALONE))


if __name__ == "__main__":
    main()
