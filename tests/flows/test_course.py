from flows.course import Course


def closed(done, over=False, committed=0):
    report = {"failed": [], "is_over_budget": over, "phases": {"decode": {"committed": committed}}}
    return {"phases": {"decode": {"done": done}}, "exit_code": 3, "reports": [report]}


def course():
    return Course({"phases": {"decode": {"done": 0}}, "exit_code": 3})


def test_a_wave_that_changed_nothing_is_the_last():
    waves = course()
    waves.take(closed(1), None)
    assert waves.goes_on
    waves.take(closed(1), None)
    assert not waves.goes_on


def test_a_lost_wave_is_not_held_against_the_run_until_the_third():
    waves = course()
    for done in (0, 0, 1, 1, 1):
        waves.take(closed(done), "Crashed")
        assert waves.goes_on
    waves.take(closed(1), "Crashed")
    assert not waves.goes_on


def test_a_wave_over_its_budget_is_the_last():
    waves = course()
    waves.take(closed(5, over=True), "Failed")
    assert not waves.goes_on and waves.summary()["over_budget"]


def test_waves_that_end_together_both_count():
    waves = course()
    waves.take(closed(4, committed=2), None)
    waves.take(closed(4, committed=2), None)
    assert waves.goes_on
