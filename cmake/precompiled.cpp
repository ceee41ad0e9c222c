// The source of the targets that precompiled headers belong to (Precompiled.cmake): a target needs one.
