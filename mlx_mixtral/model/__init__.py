"""The arithmetic of Mixtral: no paths, no dtype policy, no printing."""
