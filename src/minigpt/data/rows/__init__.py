"""From token ids to the rows that a step trains on: order, mixture, packing, masks."""
