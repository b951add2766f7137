"""Runs docker/scenarios/: real containers in network namespaces, and what is checked of them.

file.py reads a scenario, lab.py builds its network, containers.py runs podman, steps.py has what can be checked.
"""
