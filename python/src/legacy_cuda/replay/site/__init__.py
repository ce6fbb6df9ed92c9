"""The folder put in front of PYTHONPATH: Python imports ``sitecustomize`` from it at its start."""
