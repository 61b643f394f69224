"""A campaign against what ulfast promises of files: damaged ones, kills, full disks, two writers, bad downloads.

`tools/campaign.sh` runs it; `docs/safety.md` says what each part checks. Every try follows from the seed, the part and
its number, so that one can be run again: `--seed S --part readers --try 17`.
"""
