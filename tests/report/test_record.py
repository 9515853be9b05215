"""What is recorded is what is read."""

import numpy as np

from prismatic.report import compute_alarms, record


def test_arrays_come_back_by_name_and_step(tmp_path):
    path = tmp_path / record.FILE
    record.begin(path, {"domains": ["a", "b"]})
    record.append(path, 10, {"x_DE": [[1.0, 2.0], [3.0, float("nan")]], "y": 1})
    record.append(path, 20, {"x_DE": np.float32([[0.1, 0], [float("inf"), 1e-9]])})
    found = record.read(path)
    assert found.about == {"domains": ["a", "b"]}
    steps, values = found.series("x_DE")
    assert list(steps) == [10, 20]
    np.testing.assert_allclose(
        values, [[[1, 2], [3, np.nan]], [[0.1, 0], [np.nan, 1e-9]]], rtol=1e-6
    )
    np.testing.assert_array_equal(found.last("x_DE"), values[1])
    assert found.last("y") == 1 and found.last("z") is None
    assert len(found.series("z")[0]) == 0


def test_the_record_of_a_killed_run_is_read(tmp_path):
    path = tmp_path / record.FILE
    record.begin(path, {})
    record.append(path, 1, {"x": 1})
    with path.open("a") as file:
        file.write('{"step": 2, "x"')
    assert list(record.read(path).series("x")[0]) == [1]


def test_alarms_stand_beside_arrays(tmp_path):
    path = tmp_path / record.FILE
    record.begin(path, {})
    record.append(path, 1, {"x": 1})
    record.note(path, 2, "dead_view", "nobody looks", "look")
    record.append(path, 3, {"x": 2})
    found = record.read(path)
    [alarm] = compute_alarms(found)
    assert (alarm.step, alarm.name, alarm.message) == (2, "dead_view", "nobody looks")
    assert list(found.series("x")[0]) == [1, 3]


def test_what_a_run_has_become_replaces_what_it_was(tmp_path):
    path = tmp_path / record.FILE
    record.begin(path, {"views": 2, "norm_E": [0, 0.1]})
    record.append(path, 1, {"x": 1})
    record.amend(path, 1, {"norm_E": [0, 0.2]})
    record.append(path, 2, {"x": 2})
    found = record.read(path)
    assert found.about == {"views": 2, "norm_E": [0, 0.2], "as_of": 1}
    assert [line["step"] for line in found.lines] == [1, 2]
