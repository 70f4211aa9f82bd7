"""A matrix of many cells that train nothing: what planning, leases, records and boards take."""
