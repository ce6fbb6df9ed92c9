"""Device code of ``legacy-cuda verify``: files called ``sm_61.cubin`` and ``compute_61.ptx``."""
