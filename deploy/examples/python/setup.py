"""Makes the stubs from the .proto files of this repository when the package is built: they cannot be older than it."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

PROTO = Path(__file__).resolve().parents[3] / "proto"
FILES = ["settings", "table", "cluster", "node"]


class Build(build_py):
    """Adds the modules lb.v1.*_pb2, with their types."""

    def run(self) -> None:
        super().run()
        import grpc_tools
        from grpc_tools import protoc

        out = self.build_lib
        # Where google/protobuf is.
        well_known = Path(grpc_tools.__file__).parent / "_proto"
        sources = [f"lb/v1/{name}.proto" for name in FILES]
        arguments = ["protoc", f"-I{PROTO}", f"-I{well_known}", f"--python_out={out}"]
        arguments += [f"--pyi_out={out}", f"--grpc_python_out={out}"]
        if protoc.main(arguments + sources) != 0:
            raise SystemExit(f"the .proto files below {PROTO} cannot be compiled")
        # PEP 561: their types are for whoever uses them.
        for package in ("lb", "lb/v1"):
            Path(out, package, "py.typed").touch()


setup(cmdclass={"build_py": Build})
