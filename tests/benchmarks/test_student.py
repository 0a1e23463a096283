"""The table of the study of plain students, by hand."""

from benchmarks.student.tables import agreement, student_table


def run_of(condition, seed, delivered, *credit, fifth=0):
    test = {"prompt": [*range(100)], "credit": {str(n): text * 10 for n, text in enumerate(credit)}}
    return {"condition": condition, "seed": seed, "fifth": fifth, "delivered": delivered, "test": test}


def conditions(*runs):
    found = {}
    for run in runs:
        found.setdefault(run["condition"], {})[run["seed"]] = run
    return found


def test_models_agree_where_both_are_right_or_both_wrong():
    assert agreement("1100h", "1010h") == "10011"


def test_a_student_is_held_against_its_own_teacher_and_the_seed_alone():
    """Teacher 0.5, delivered round 0.8; seed alone 0.4, student 0.7; it differs from the teacher on three of ten pairs.

    The third random seed has no student and counts nowhere.
    """
    teacher = [("1111100000", "1111111100")] * 2
    runs = [run_of("teacher", seed, 1, *credit) for seed, credit in enumerate(teacher)]
    runs += [run_of("seed_head", seed, 0, "1111000000") for seed in range(2)]
    runs += [run_of("student_head", seed, 0, "1111110010") for seed in range(2)]
    runs += [run_of("teacher", 2, 0, "0000000000"), run_of("seed_lora", 2, 0, "1111111111")]
    lines = student_table(conditions(*runs)).splitlines()
    assert len(lines) == 3
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells[:2] == ["`head`, body frozen", "2"]
    means = [cell.split()[0] for cell in cells[2:]]
    assert means == ["0.500", "0.800", "0.400", "0.700", "0.300", "-0.100", "0.700"]
    assert student_table({}).count("\n") == 1
