"""The names that flags take, known without importing TensorFlow."""

# `--model`: to the class in `models`.
MODELS = {
    "avg_pooling": "AvgPooling",
    "can": "CAN",
    "dien": "DIEN",
    "diffumin": "DiffuMIN",
    "diffurec": "DiffuRec",
    "din": "DIN",
    "dreamrec": "DreamRec",
    "eta": "ETA",
    "hierdiffuse": "HierDiffuse",
    "sdim": "SDIM",
    "sim_hard": "SIMHard",
    "sim_soft": "SIMSoft",
    "twin": "TWIN",
    "twin_v2": "TWINV2",
}

# `--dataset`: to the module and class in `datasets`.
DATASETS = {
    "alibaba": "alibaba.Alibaba",
    "amazon_books": "amazon_books.AmazonBooks",
    "clustered": "clustered.Clustered",
    "ele_me": "ele_me.EleMe",
    "logs": "logs.Logs",
    "planted": "planted.Planted",
    "synthetic": "synthetic.Synthetic",
    "taobao": "taobao.Taobao",
}

# `--strategy`: see `training.strategies.create`.
STRATEGIES = ("one", "mirrored", "multi_worker", "parameter_server")

# `--group_by`: see `datasets.preparation.Preparation`.
GROUPINGS = ("impression", "request")

# `--schedule`: see `optimizers.Schedule`.
SCHEDULES = ("constant", "linear", "cosine")

# `--table_dtype`, behind that of training: see `layers.embedding.TableEmbedding.compress`.
TABLE_DTYPES = ("float32", "bfloat16", "int8")

# `--calibrate`: see `calibration.fit`.
CALIBRATIONS = ("temperature", "platt")
