"""everface in other people's frameworks: thin adapters over `LiveSession`, each behind an extra that everface itself never imports."""
