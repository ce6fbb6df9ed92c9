"""A static package index over the wheels in a folder, with one sub-index for each old capability.

``wheels`` reads what lies there, ``simple`` and ``overview`` make pages of it without touching
anything, ``publish`` puts these in place, and ``make`` does all of it. Nothing in a wheel is
executed.
"""
