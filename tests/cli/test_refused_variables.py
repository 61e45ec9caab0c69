"""Errors of libraries about the value of an environment variable are one line that names it."""

from __future__ import annotations

from pathlib import Path

import pytest
from spdf_command import run_spdf

from spdf_dist.cli.refused_variables import check_variables, refused_variable
from spdf_dist.config.errors import UserError


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("TORCH_DISTRIBUTED_DEBUG", "The value of TORCH_DISTRIBUTED_DEBUG must be OFF, INFO, or DETAIL."),
        ("TORCH_GLOO_LAZY_INIT", "Invalid value for environment variable: TORCH_GLOO_LAZY_INIT"),
        ("GLOO_DEVICE_TRANSPORT", "makeDeviceForInterface(): unsupported gloo device"),
        ("PYTORCH_CUDA_ALLOC_CONF", "Unrecognized CachingAllocator option: foo"),
        ("DEEPSPEED_TIMEOUT", "invalid literal for int() with base 10: 'foo'"),
        ("TORCH_LOGS", '\nInvalid log settings: foo, must be\nFor more, try TORCH_LOGS="help"\n'),
    ],
)
def test_the_variable_is_named_with_its_value(name: str, message: str) -> None:
    env = {name: "foo", "TORCH_HOME": "/x", "OMP_NUM_THREADS": "1"}
    said = refused_variable(ValueError(message), env)
    assert said is not None and said.startswith(f"{name}=foo: ") and "\n" not in said
    assert refused_variable(ValueError(message), {"TORCH_HOME": "/x"}) is None
    try:
        raise RuntimeError("a library gave up") from ValueError(message)
    except RuntimeError as error:
        assert refused_variable(error, env) == said


@pytest.mark.parametrize(
    "message",
    [
        "NCCL error: unhandled system error (run with NCCL_DEBUG=INFO for details)\nncclInvalidUsage: invalid usage",
        "CUDA error: an illegal memory access\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1",
        "invalid literal for int() with base 10: 'x'",
        "the sizes differ",
    ],
)
def test_other_errors_blame_no_variable(message: str) -> None:
    env = {"NCCL_DEBUG": "INFO", "CUDA_LAUNCH_BLOCKING": "1", "OMP_NUM_THREADS": "1", "RANK_FILE": "x"}
    assert refused_variable(RuntimeError(message), env) is None


def test_a_variable_that_torch_refuses_is_one_line(tiny_config: Path, tmp_path: Path) -> None:
    done = run_spdf("pretrain", tiny_config, f"run_dir={tmp_path}/run", TORCH_DISTRIBUTED_DEBUG="foo")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("spdf pretrain: TORCH_DISTRIBUTED_DEBUG=foo: ")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("GOMP_CPU_AFFINITY", value) for value in ("foo", "0 x", "0:1", "{0}", "0;1")),
        *(("TORCH_FR_BUFFER_SIZE", value) for value in ("zz", "", "99999999999")),
        *(("TORCH_FR_CPP_STACK", value) for value in ("zz", "", "5")),
        ("TORCH_NCCL_TRACE_BUFFER_SIZE", "zz"),
        ("TORCH_NCCL_TRACE_CPP_STACK", "zz"),
    ],
)
def test_a_value_on_which_native_code_hangs_is_refused(name: str, value: str) -> None:
    with pytest.raises(
        UserError, match=f"^{name}=.*: not a.* or unset this environment variable$|^{name}=.*: not 1 or 0"
    ):
        check_variables({name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("GOMP_CPU_AFFINITY", value) for value in ("", " ", "0", "0,1", "0-3", "0-8:2 9", "1 ", "0 3 1-2 4-15:2")),
        *(("TORCH_FR_BUFFER_SIZE", value) for value in ("0", "2000", " 5", "-5")),
        *(("TORCH_FR_CPP_STACK", value) for value in ("1", "yes", "FALSE", "t")),
    ],
)
def test_values_that_work_are_not_refused(name: str, value: str) -> None:
    check_variables({name: value})


@pytest.mark.parametrize("variable", [{"GOMP_CPU_AFFINITY": "foo"}, {"TORCH_FR_BUFFER_SIZE": "zz"}])
def test_such_a_value_is_one_line_of_the_command(variable: dict[str, str], tiny_config: Path, tmp_path: Path) -> None:
    for words in (["pretrain", tiny_config, f"run_dir={tmp_path}/run", "parallel.data=2"], ["doctor"]):
        done = run_spdf(*words, **variable)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
        assert next(iter(variable)) in done.stderr
    assert not (tmp_path / "run").exists()
