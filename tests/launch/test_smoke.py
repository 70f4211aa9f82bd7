"""A step that does not come."""

from kdbench.launch.smoke import _one


def test_a_step_that_takes_too_long_is_told(tmp_path):
    assert _one(tmp_path, 0.001) == "no step within 0.001 s"
