"""Write, sign, verify and embed bundles, and measure them on devices."""
