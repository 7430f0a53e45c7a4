"""Beam's own options on our command lines: handed on unchanged, or refused in one line that names the cause."""

import http.server
import json
import re
import socketserver
import threading

import pytest

from pipeline.certification import self_check
from pipeline.certification.engine import Engine, cause
from pipeline.cli import beam_options
from pipeline.experiments import settings as settings_lib
from pipeline.jobs import certify
from pipeline.utils.errors import InputError

FLAGS = ["--runner", "FlinkRunner", "--flink_master=localhost:8081", "--environment_type", "EXTERNAL"]


def test_what_is_beam_s_is_handed_on_unchanged_by_both_commands(tmp_path):
    parsed, _ = settings_lib.parse(["--dataset", "digits", *FLAGS, "--epochs", "3"])
    assert (parsed["beam"], parsed["epochs"]) == (tuple(FLAGS), 3)
    assert settings_lib.parse(["--dataset", "digits"])[0]["beam"] == ()
    assert beam_options.checked(FLAGS, ["model"]) == tuple(FLAGS)
    # What Beam collects may come again.
    repeated = (*FLAGS, "--experiments=a", "--experiments", "b")
    assert beam_options.checked(repeated, []) == repeated


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--flink_mastre", "x"], "Unknown argument --flink_mastre. Did you mean --flink_master"),
        (["--sigmo", "1"], "Unknown argument --sigmo. Did you mean --sigma"),
        (
            ["--job_endpoint", "localhost:1"],
            "--job_endpoint is one of Beam's options, for an engine: name the engine with --runner.",
        ),
        (["--runner=FlinkRunner", "--runner", "PrismRunner"], "--runner is given twice. Give it once."),
        (["--runner"], "Argument --runner: expected one argument (one of Beam's options)."),
    ],
)
def test_what_neither_knows_is_one_line_with_the_nearest_of_both(flags, line, capsys):
    with pytest.raises(InputError, match=re.escape(line)):
        beam_options.checked(flags, ["sigma", "model"])
    assert certify.main(["--model", "m.keras", "--dataset", "digits", "--sigma", "1", *flags]) == 2
    assert line in capsys.readouterr().err


def test_what_is_for_an_engine_is_refused_without_one(capsys):
    assert certify.main(["--model", "m.keras", "--dataset", "digits", "--patience", "9"]) == 2
    assert "--patience is for an engine: name the engine with --runner." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--runner=DaskRunner"], "DaskRunner reports jobs as done but loses results"),
        (
            ["--runner=apache_beam.runners.dask.dask_runner.DaskRunner"],
            "DaskRunner reports jobs as done but loses results",
        ),
        (["--runner=FlinkRuner"], "Beam has no runner FlinkRuner. Did you mean FlinkRunner"),
        (["--runner=nowhere.MyRunner"], "The runner nowhere.MyRunner cannot be loaded"),
        (
            ["--runner=PortableRunner", "--job_endpoint=localhost:1"],
            "Nothing answers at localhost:1, where the",
        ),
        (["--runner=PortableRunner", "--job_endpoint=here"], "must be given as HOST:PORT. Received: here"),
        (["--runner=FlinkRunner", "--flink_master=localhost:1"], "No Flink answers at localhost:1"),
        (["--runner=FlinkRunner", "--flink_master=localhost:rest"], "No Flink answers at localhost:rest"),
        (["--runner=os.path"], "The runner os.path cannot be loaded ('module' object is not callable)."),
        (["--runner=pathlib.Path"], "pathlib.Path is not a runner of Beam's, but a PosixPath."),
    ],
)
def test_an_engine_that_cannot_be_used_is_one_line(flags, line):
    with pytest.raises(InputError, match=re.escape(line)) as error:
        Engine(tuple(flags)).check()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",  # as at the port of another service
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nno chunk\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n[]",
    ],
)
def test_what_answers_and_is_no_flink_is_one_line(answer):
    class Other(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.recv(1000)
            self.request.sendall(answer)

    with socketserver.TCPServer(("localhost", 0), Other) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        where = f"localhost:{server.server_address[1]}"
        with pytest.raises(InputError, match=f"^No Flink answers at {where}, flink_master ") as error:
            Engine(("--runner=FlinkRunner", f"--flink_master={where}")).check()
    assert "\n" not in str(error.value)


def test_a_flink_of_another_version_than_the_job_server_s_is_refused():
    class Flink(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"flink-version": "1.19.3"}).encode())

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("localhost", 0), Flink) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        flags = ("--runner=FlinkRunner", f"--flink_master=localhost:{server.server_port}")
        Engine((*flags, "--flink_version=1.19")).check()
        with pytest.raises(InputError, match=r"is 1\.19\.3, but the job server is for 2\.0"):
            Engine((*flags, "--flink_version=2.0")).check()
        server.shutdown()


def test_a_runner_that_says_done_and_does_nothing_is_refused(tmp_path, monkeypatch):
    (tmp_path / "lying.py").write_text(
        "from apache_beam.runners.runner import PipelineResult, PipelineRunner, PipelineState\n\n\n"
        "class Result(PipelineResult):\n"
        "    def wait_until_finish(self, duration=None):\n"
        "        return self.state\n\n\n"
        "class LyingRunner(PipelineRunner):\n"
        "    def run_pipeline(self, pipeline, options):\n"
        "        return Result(PipelineState.DONE)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="says that a job is done, but 0 of its 16 elements came out"):
        self_check.run(Engine(("--runner=lying.LyingRunner",)), str(tmp_path / "votes"))
    assert list((tmp_path / "votes").iterdir()) == []


@pytest.mark.parametrize(
    ("page", "line", "is_final"),
    [
        ("Traceback ...\npipeline.utils.errors.InputError: no model [while running 'ParDo']\n", "no model", True),
        (
            "java.lang.RuntimeException: Error received\nTraceback\nModuleNotFoundError: No module named 'pipeline'\n\n"
            "\tat org.apache.beam.Foo(Foo.java:1)\nCaused by: java.lang.IllegalStateException: x\n",
            "ModuleNotFoundError: No module named 'pipeline', on a worker",
            True,
        ),
        (
            '<_InactiveRpcError:\n\tstatus = UNAVAILABLE\n\tdetails = "Connection refused"\n>',
            "Connection refused",
            False,
        ),
        ("MemoryError: no room\n", "MemoryError: no room", False),
    ],
)
def test_the_cause_is_the_worker_s_own_error(page, line, is_final):
    failure = cause(RuntimeError(page))
    assert failure.line.startswith(line)
    assert (failure.is_final, "\n" in failure.line) == (is_final, False)
