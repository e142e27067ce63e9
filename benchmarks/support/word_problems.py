"""Word problems of the form of GSM8K's, written for this project: question, and answer with its calculations marked."""

WORD_PROBLEMS = [
    (
        "Marta bakes 36 rolls for the school fair. She gives a third of them to her neighbours and packs the rest in "
        "bags of four. How many bags does she fill?",
        "Marta gives away 36/3 = <<36/3=12>>12 rolls.\nSo 36-12 = <<36-12=24>>24 rolls are left.\nShe fills 24/4 = "
        "<<24/4=6>>6 bags.\n#### 6",
    ),
    (
        "A bus leaves the depot with 14 passengers. At the first stop 9 get on and 5 get off, at the second stop twice "
        "as many get on as at the first. How many passengers are on the bus now?",
        "After the first stop there are 14+9-5 = <<14+9-5=18>>18 passengers.\nAt the second stop 9*2 = <<9*2=18>>18 "
        "get on.\nNow 18+18 = <<18+18=36>>36 passengers are on the bus.\n#### 36",
    ),
    (
        "Tom saves $1,250 a month for a car that costs $20,000. His aunt pays a quarter of the price. After how many "
        "months can he buy it?",
        "His aunt pays 20000/4 = $<<20000/4=5000>>5,000.\nTom needs 20000-5000 = $<<20000-5000=15000>>15,000.\nThat "
        "takes 15000/1250 = <<15000/1250=12>>12 months.\n#### 12",
    ),
    (
        "Each of the 8 shelves in Iris's room holds 23 books, except the lowest, which holds 11. How many books are on "
        "the shelves?",
        "Seven shelves hold 7*23 = <<7*23=161>>161 books.\nWith the lowest, there are 161+11 = <<161+11=172>>172 "
        "books.\n#### 172",
    ),
    (
        "A baker's dozen is thirteen. Ahmed orders three baker's dozens of buns for $0.60 each and pays with a fifty "
        "dollar note. How much change does he get, in dollars?",
        "Ahmed orders 3*13 = <<3*13=39>>39 buns.\nThey cost 39*.60 = $<<39*.60=23.4>>23.40.\nHe gets 50-23.40 = "
        "$<<50-23.4=26.6>>26.60 back.\n#### 26.60",
    ),
    (
        "The garden hose fills a pool of 900 litres in 45 minutes. With the hose of the neighbour, which gives half as "
        "much water, both run together. After how many minutes is the pool full?",
        "One hose gives 900/45 = <<900/45=20>>20 litres a minute.\nThe other gives 20/2 = <<20/2=10>>10 litres.\n"
        "Together they give 20+10 = <<20+10=30>>30 litres.\nThe pool is full after 900/30 = <<900/30=30>>30 minutes.\n"
        "#### 30",
    ),
    (
        "Lena is twice as old as her brother was when she was as old as he is now. He is 18. How old is Lena?",
        "Let the difference of ages be d; Lena is 18+d.\nWhen she was 18, her brother was 18-d.\nSo 18+d = 2*(18-d), "
        "and d = <<18/3=6>>6.\nLena is 18+6 = <<18+6=24>>24 years old.\n#### 24",
    ),
    (
        "In a class of 32 pupils, three eighths play an instrument. A quarter of these play the violin, and the others "
        "play the piano. How many pupils play the piano?",
        "There are 32*3/8 = <<32*3/8=12>>12 pupils who play.\nOf these 12/4 = <<12/4=3>>3 play the violin.\nThe piano "
        "is played by 12-3 = <<12-3=9>>9 pupils.\n#### 9",
    ),
]
