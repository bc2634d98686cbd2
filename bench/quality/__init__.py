"""Quality of guidance rules: what is drawn, who judges it, the rows of it, and weights that are searched by them."""
