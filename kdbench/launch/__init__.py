"""From a matrix to finished cells: plan, launchers, worker processes, progress. No torch in the parent."""
