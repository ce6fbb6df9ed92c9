"""Patched wheels: a published wheel, our patches to its text, our modules beside it.

``patches`` reads and applies unified diffs, ``series`` is what the catalog wants applied to a
package, ``repack`` turns one wheel into another, ``make`` fetches, keeps and checks both. Nothing
of a wheel is executed.
"""
