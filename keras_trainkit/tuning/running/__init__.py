"""Where trials run: in this process, in processes of their own, on several machines, on a Ray cluster."""
