"""The server on many machines: the application and its makers as deployments of Ray Serve."""
