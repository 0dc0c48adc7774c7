"""Charts of the report as SVG markup: one file a chart, drawn for a given width, coloured by classes of charts.css.

They know numbers and labels, never result documents; every piece of text goes through `svg.tag`, which escapes it.
"""
