"""What people look at: thin views over the frames of :mod:`ddlm_core.animation`."""
