"""One run on several processes: the mesh, what each process holds, and what they tell each other."""
