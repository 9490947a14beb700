"""Trained models as SavedModels for TF Serving, clients of it, and a stand-in to develop against.

The client and the stand-in need no model of this package.
"""

OUTPUT = "click_probability"  # what every signature that scores returns
