"""What every verb needs: the home, settings and their layers, progress, signals, and the app that opens services."""
