"""What the SPEED paper (arXiv 2410.18634) published about MTEB: its Table 1 by category and its Table 8 by data set."""

from __future__ import annotations

CATEGORIES = {
    "Classification": "Class", "Clustering": "Clust", "PairClassification": "Pair", "Reranking": "Rerank", "Retrieval": "Retr", "STS": "STS",
    "Summarization": "Summ",
}  # fmt: skip

# Table 1: setting, then model, fine-tuning data, the categories in the order above, and the average over 56 tasks.
TABLE_1: dict[str, list[tuple[str, str, tuple[float, ...]]]] = {
    "synthetic data only (Table 1)": [
        ("LLaMA-3-8B-instruct, unaligned", "230K", (76.8, 48.0, 79.8, 59.5, 44.2, 79.7, 31.5, 61.0)),
        ("the same", "920K", (77.0, 47.2, 80.3, 59.4, 45.0, 81.2, 31.5, 61.3)),
        ("GPT-4o", "230K", (77.7, 47.7, 83.9, 58.7, 46.7, 80.9, 30.7, 62.2)),
        ("Gecko-1b-768", "6.6M", (70.3, 46.8, 86.2, 57.6, 53.2, 83.1, 32.2, 62.6)),
        ("E5-mistral-7b", "500K", (78.2, 50.5, 86.0, 59.0, 46.9, 81.2, 31.9, 63.1)),
        ("SPEED", "920K", (78.3, 48.6, 86.3, 59.8, 48.1, 82.6, 31.7, 63.4)),
    ],
    "synthetic and labelled data (Table 1)": [
        ("GTR-xxl", "662K", (67.4, 42.4, 86.1, 56.7, 48.5, 78.4, 30.6, 59.0)),
        ("GTE-large", "3M", (73.3, 46.8, 85.0, 59.1, 52.2, 83.4, 31.7, 63.1)),
        ("text-embedding-3-large", "", (75.5, 49.0, 85.7, 59.2, 55.4, 81.7, 29.9, 64.6)),
        ("jina-embeddings-v3", "", (82.6, 45.3, 84.0, 58.1, 53.9, 85.8, 29.7, 65.5)),
        ("Gecko-1b-768", ">6.6M", (81.2, 47.5, 87.6, 58.9, 55.7, 85.1, 32.6, 66.3)),
        ("E5-mistral-7b", "1.8M", (78.5, 50.3, 88.3, 60.2, 56.9, 84.6, 31.4, 66.6)),
        ("SPEED", "2.2M", (78.4, 49.3, 88.2, 60.8, 56.5, 85.5, 31.1, 66.5)),
    ],
}

# Table 8, SPEED with synthetic data only / with labelled data too, under mteb's names of the data sets.
_TABLE_8 = {
    "Classification": "AmazonCounterfactualClassification 78.2/76.7 AmazonPolarityClassification 95.7/96.2 AmazonReviewsClassification 56.7/56.3 "
    "Banking77Classification 87.7/88.6 EmotionClassification 52.3/51.0 ImdbClassification 93.9/94.9 MassiveIntentClassification 79.0/80.2 "
    "MassiveScenarioClassification 81.5/82.3 MTOPDomainClassification 95.4/95.9 MTOPIntentClassification 86.0/87.1 "
    "ToxicConversationsClassification 68.9/68.4 TweetSentimentExtractionClassification 64.3/63.8",
    "Clustering": "ArxivClusteringP2P 50.7/51.1 ArxivClusteringS2S 46.4/47.0 BiorxivClusteringP2P 42.6/42.0 BiorxivClusteringS2S 39.7/39.6 "
    "MedrxivClusteringP2P 35.1/37.0 MedrxivClusteringS2S 35.7/36.3 RedditClustering 56.1/57.9 RedditClusteringP2P 63.9/65.3 "
    "StackExchangeClustering 70.0/71.6 StackExchangeClusteringP2P 39.9/39.0 TwentyNewsgroupsClustering 54.9/55.2",
    "PairClassification": "SprintDuplicateQuestions 95.8/95.5 TwitterSemEval2015 77.5/81.7 TwitterURLCorpus 85.7/87.4",
    "Reranking": "AskUbuntuDupQuestions 65.5/67.2 MindSmallReranking 33.0/33.4 SciDocsRR 86.7/87.3 StackOverflowDupQuestions 53.9/55.2",
    "Retrieval": "ArguAna 40.5/59.3 ClimateFEVER 22.2/37.8 CQADupstackRetrieval 41.7/41.6 DBPedia 43.3/49.7 FEVER 77.7/88.5 FiQA2018 39.5/56.1 "
    "HotpotQA 55.6/75.2 MSMARCO 25.9/42.5 NFCorpus 36.5/38.7 NQ 53.3/61.7 QuoraRetrieval 84.6/89.3 SCIDOCS 21.0/16.6 SciFact 71.9/77.2 "
    "Touche2020 23.8/25.8 TRECCOVID 83.9/87.4",
    "STS": "BIOSSES 85.4/87.1 SICK-R 79.6/82.5 STS12 77.7/80.2 STS13 87.9/89.9 STS14 81.8/86.2 STS15 87.7/91.2 STS16 85.8/88.2 STS17 86.4/91.9 "
    "STS22 69.2/68.3 STSBenchmark 84.7/89.2",
    "Summarization": "SummEval 31.7/31.1",
}
TABLE_8: dict[str, tuple[str, float, float]] = {}  # data set: category, synthetic only, with labelled data
for _category, _text in _TABLE_8.items():
    _cells = _text.split()
    for _name, _pair in zip(_cells[::2], _cells[1::2], strict=True):
        _only, _both = _pair.split("/")
        TABLE_8[_name] = (_category, float(_only), float(_both))
