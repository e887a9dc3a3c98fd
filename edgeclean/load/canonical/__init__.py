"""One canonical form for networks of any code: stock layers, called in order."""
