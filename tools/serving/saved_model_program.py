"""A SavedModel in a process without Python (run_saved_model.cc), as a stand-in for TF Serving."""

import fcntl
import hashlib
import pathlib
import struct
import subprocess

import tensorflow as tf
from tensorflow.core.framework import attr_value_pb2

_SOURCE = pathlib.Path(__file__).with_name("run_saved_model.cc")
_HEADER = struct.Struct("<Iiqq")  # size, code, microseconds, resident bytes


def compile_program(directory):
    """Compiles run_saved_model.cc with the TensorFlow library of this environment, if need be.

    Args:
        directory: str or `pathlib.Path`. An existing directory for the program. Processes that
            share it compile once.

    Returns:
        `pathlib.Path` of the program.

    Raises:
        FileNotFoundError: If there is no g++.
    """
    tensorflow = pathlib.Path(tf.__file__).parent
    content = _SOURCE.read_bytes() + f"{tensorflow} {tf.__version__}".encode()
    digest = hashlib.sha256(content).hexdigest()[:8]
    program = pathlib.Path(directory).absolute() / f"run_saved_model.{digest}"
    with open(f"{program}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            unfinished = f"{program}.unfinished"
            subprocess.run(
                ["g++", "-w", "-std=c++17", "-D_GLIBCXX_USE_CXX11_ABI=1",
                 "-DEIGEN_MAX_ALIGN_BYTES=64", f"-I{tensorflow}/include", str(_SOURCE),
                 "-o", unfinished, f"-L{tensorflow}", "-Wl,--no-as-needed",
                 "-l:libtensorflow_cc.so.2", "-l:libtensorflow_framework.so.2",
                 f"-Wl,-rpath,{tensorflow}"],
                check=True,
            )  # fmt: skip
            pathlib.Path(unfinished).rename(program)
    return program


class SavedModelProgram:
    """A running program with one SavedModel; it is killed at the end of its `with` block.

    Args:
        program: `pathlib.Path`. What `compile_program` returned.
        saved_model: str or `pathlib.Path`. Directory of a version.

    Attributes:
        microseconds: int. What `Session::Run` took for the last answer; 0 if it was not reached.
        resident_bytes: int. Memory of the process after the last answer.
    """

    def __init__(self, program, saved_model):
        self.microseconds = 0
        self.resident_bytes = 0
        self._process = subprocess.Popen(
            [str(program), str(saved_model)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.communicate()

    def run(self, signature, inputs):
        """Answers one request.

        Args:
            signature: str. Name of the signature.
            inputs: dict of arrays by name. They are sent as they are: no dtype is converted.

        Returns:
            dict of output arrays by name.

        Raises:
            tf.errors.OpError: If the model refuses the request; of the subclass of its code.
            ChildProcessError: If the program ended.
        """
        request = attr_value_pb2.NameAttrList(name=signature)
        for name, value in inputs.items():
            request.attr[name].tensor.CopyFrom(tf.make_tensor_proto(value))
        code, answer = self._answer(request.SerializeToString())
        if code:
            error = tf.compat.v1.errors.exception_type_from_error_code(code)
            raise error(None, None, answer.decode(errors="replace"))
        outputs = attr_value_pb2.NameAttrList.FromString(answer).attr
        return {name: tf.make_ndarray(value.tensor) for name, value in outputs.items()}

    def _answer(self, request):
        try:
            self._process.stdin.write(struct.pack("<I", len(request)) + request)
            self._process.stdin.flush()
        except BrokenPipeError:
            self._raise_ended()
        header = self._process.stdout.read(_HEADER.size)
        if len(header) < _HEADER.size:
            self._raise_ended()
        size, code, self.microseconds, self.resident_bytes = _HEADER.unpack(header)
        return code, self._process.stdout.read(size)

    def _raise_ended(self):
        raise ChildProcessError(
            f"{' '.join(self._process.args)} ended with exit status {self._process.wait()}"
        )
