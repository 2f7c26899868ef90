"""What a run will take, known before it: memory, arithmetic, time and price."""
