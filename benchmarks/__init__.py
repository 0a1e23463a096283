"""Studies and measurements after the tables of `docs/`, run from the root of the repository.

python -m benchmarks.STUDY.run    # runs what is missing in benchmarks/STUDY/results.jsonl
python -m benchmarks.tables       # writes the tables into docs/
python -m benchmarks.pictures     # draws docs/pictures/study.svg and speed.svg
"""
